"""Room: calls in flight, token limits, and the one line in which calls wait for either."""

import asyncio
import random
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.dialects import dialect_of
from shared.infrastructure.balancing.errors import NoHostAvailableError
from shared.infrastructure.balancing.hosts import HostLimits
from shared.infrastructure.balancing.strategies import LoadBalancingStrategy, strategy_of
from shared.infrastructure.http.extensions import BUFFERED
from shared.infrastructure.resilience import BulkheadConfig, RateLimitConfig, deadline
from tests.unit.balancing.fleet import Fleet, busy

CHAT = "/v1/chat/completions"
ONE = HostLimits(max_in_flight=1)


def full_fleet(*names: str, **options: Any) -> tuple[Fleet, dict[str, asyncio.Event]]:
    """Return hosts with room for one call each, and what ends the calls of each."""
    ends = {name: asyncio.Event() for name in names}
    return Fleet({**ends}, **{"limits": ONE, **options}), ends


async def stop(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_full_host_is_passed_over() -> None:
    fleet, _ = full_fleet("a", "b")
    tasks = [fleet.start() for _ in range(2)]
    await fleet.settle()
    assert fleet.counts() == {"a": 1, "b": 1}
    await stop(*tasks)


async def test_where_all_are_full_a_call_gets_the_first_room_there_is_anywhere() -> None:
    fleet, ends = full_fleet("a", "b")
    tasks = [fleet.start() for _ in range(4)]
    await fleet.settle()
    assert len(fleet.asked) == 2
    ends["b"].set()
    await fleet.settle()
    assert fleet.counts() == {"a": 1, "b": 3}
    assert [task.done() for task in tasks] == [False, True, True, True]
    await stop(*tasks)


async def test_the_line_is_first_come_first_served_and_nobody_barges() -> None:
    fleet, ends = full_fleet("a")
    order: list[int] = []

    async def call(number: int) -> None:
        await fleet.send()
        order.append(number)

    tasks = [asyncio.ensure_future(call(number)) for number in range(5)]
    await fleet.settle()
    ends["a"].set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    assert fleet.in_flight == {"a": 0}
    assert fleet.clock.pending == 0


async def test_who_waits_for_one_model_does_not_hold_up_another() -> None:
    fleet, ends = full_fleet("a", "b", each={"a": {"models": ["m"]}, "b": {"models": ["n"]}})
    tasks = [fleet.start(fleet.call(model=model)) for model in "mnmn"]
    await fleet.settle()
    ends["b"].set()
    await fleet.settle()
    assert [task.done() for task in tasks] == [False, True, False, True]
    await stop(*tasks)


async def test_nobody_waits_for_longer_than_the_queue_timeout() -> None:
    fleet, _ = full_fleet("a", balance=BalanceConfig(queue_timeout=3.0))
    first, second = fleet.start(), fleet.start()
    await fleet.clock.advance(2.9)
    assert not second.done()
    await fleet.clock.advance(0.1)
    error = second.exception()
    assert isinstance(error, NoHostAvailableError)
    assert error.reasons == {"a": "it is full: 1 calls in flight"}
    await stop(first)


async def test_nobody_waits_for_longer_than_the_deadline_leaves() -> None:
    fleet, _ = full_fleet("a")
    first = fleet.start()
    await fleet.settle()

    async def hurried() -> None:
        async with deadline(1.0, clock=fleet.clock):
            await fleet.send()

    second = asyncio.ensure_future(hurried())
    await fleet.clock.advance(1.0)
    assert isinstance(second.exception(), (NoHostAvailableError, TimeoutError))
    assert fleet.balance.snapshot()["waiting"] == 0
    await stop(first)


@pytest.mark.parametrize("config", [{"max_queued": 1}, {"queue_timeout": 0.0}])
async def test_no_more_wait_than_may(config: dict[str, Any]) -> None:
    fleet, _ = full_fleet("a", balance=BalanceConfig(**config))
    tasks = [fleet.start() for _ in range(3)]
    await fleet.settle()
    refused = [task for task in tasks if task.done()]
    assert len(refused) == (1 if "max_queued" in config else 2)
    assert all(isinstance(task.exception(), NoHostAvailableError) for task in refused)
    await stop(*tasks)


async def test_who_is_cancelled_in_line_makes_place_for_those_behind() -> None:
    fleet, ends = full_fleet("a")
    tasks = [fleet.start() for _ in range(3)]
    await fleet.settle()
    tasks[1].cancel()
    ends["a"].set()
    await fleet.settle()
    assert [task.cancelled() for task in tasks] == [False, True, False]
    assert fleet.counts() == {"a": 2}


async def test_room_that_is_handed_over_in_the_tick_of_a_cancellation_is_given_back() -> None:
    fleet, ends = full_fleet("a")
    call = fleet.call()
    first, second, third = fleet.start(), fleet.start(call), fleet.start()
    await fleet.settle()
    first.add_done_callback(lambda _: second.cancel())
    ends["a"].set()
    await fleet.settle()
    assert second.cancelled() or second.done()
    assert third.result().status_code == 200
    assert fleet.in_flight == {"a": 0}
    assert not call.busy


@pytest.mark.parametrize("event", ["add", "enable"])
async def test_a_host_that_comes_takes_from_the_line(event: str) -> None:
    fleet, _ = full_fleet("a", "b")
    fleet.roster.enable("b", False)
    tasks = [fleet.start() for _ in range(2)]
    await fleet.settle()
    if event == "add":
        fleet.add("c")
    else:
        fleet.roster.enable("b", True)
    await fleet.settle()
    assert len(fleet.asked) == 2
    await stop(*tasks)


async def test_throttled_hosts_are_waited_for_and_never_asked_early() -> None:
    fleet = Fleet({"a": [busy(4), 200], "b": [busy(6), 200]})
    await fleet.statuses(fleet.call(), 2)
    task = fleet.start()
    await fleet.clock.advance(3.9)
    assert not task.done()
    await fleet.clock.advance(0.1)
    assert task.result().status_code == 200
    assert fleet.asked == ["a", "b", "a"]


async def test_a_lone_host_with_token_limits_is_waited_for_while_it_is_throttled() -> None:
    fleet = Fleet({"a": [busy(4), 200]}, limits=HostLimits(tokens_per_minute=1000))
    await fleet.send()
    task = fleet.start()
    await fleet.clock.advance(4.0)
    assert task.result().status_code == 200


async def test_who_would_have_to_wait_for_too_long_is_told_at_once() -> None:
    fleet = Fleet({"a": busy(60)})
    await fleet.send()
    with pytest.raises(NoHostAvailableError) as caught:
        await fleet.send()
    assert caught.value.retry_after == 60.0
    assert caught.value.reasons == {"a": "it asked for patience"}


async def test_a_bulkhead_counts_as_room() -> None:
    bulkhead = BulkheadConfig(max_concurrent=1)
    end = asyncio.Event()
    fleet = Fleet({"a": end, "b": end}, policy={"bulkhead": bulkhead})
    tasks = [fleet.start() for _ in range(3)]
    await fleet.settle()
    assert fleet.counts() == {"a": 1, "b": 1}
    assert fleet.balance.snapshot()["waiting"] == 1
    end.set()
    await asyncio.gather(*tasks)
    assert fleet["a"].snapshot()["bulkhead"]["in_flight"] == 0


async def test_a_host_whose_rate_limit_has_no_permit_is_passed_over_if_another_has() -> None:
    limit = RateLimitConfig(requests_per_second=1.0, burst_size=1)
    fleet = Fleet({"a": 200, "b": 200}, policy={"rate_limit": limit})
    for _ in range(2):
        await fleet.send()
    assert fleet.asked == ["a", "b"]
    late = fleet.start()
    await fleet.settle()
    assert not late.done()
    await fleet.clock.advance(1.0)
    assert late.result().status_code == 200


def answer(read: int, written: int) -> Any:
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    message = {"role": "assistant", "content": "hi"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    body = {"object": "chat.completion", "choices": choices, "usage": usage}
    return lambda _: httpx.Response(200, json=body)


def chat(fleet: Fleet, words: int = 4, **options: Any) -> Any:
    payload = {"model": "m", "messages": [{"role": "user", "content": "word " * words}], **options}
    call = fleet.call(dialect=dialect_of(CHAT), model="m", payload=payload)
    return {"call": call, "path": CHAT, "json": payload, "extensions": {BUFFERED: True}}


def left(fleet: Fleet, name: str = "a") -> float:
    available: float = fleet[name].snapshot()["token_limits"]["tokens"]["available"]
    return available


LIMITED = HostLimits(tokens_per_minute=1000)


async def test_tokens_are_reserved_at_the_pick_and_settled_to_what_was_used() -> None:
    end = asyncio.Event()

    async def slowly(request: httpx.Request) -> Any:
        await end.wait()
        return answer(10, 20)(request)

    fleet = Fleet({"a": slowly}, limits=LIMITED)
    task = fleet.start(**chat(fleet, max_tokens=500))
    await fleet.settle()
    assert left(fleet) < 500
    end.set()
    await task
    assert left(fleet) == pytest.approx(970)


@pytest.mark.parametrize("step", [500, 400, busy(), httpx.ConnectError("no")])
async def test_tokens_of_a_call_that_did_nothing_are_given_back(step: Any) -> None:
    fleet = Fleet({"a": step}, limits=LIMITED)
    facts = chat(fleet, max_tokens=500)
    await asyncio.gather(fleet.start(**facts), return_exceptions=True)
    assert left(fleet) == pytest.approx(1000)


async def test_tokens_of_a_call_whose_end_is_unknown_stay_spent() -> None:
    fleet = Fleet({"a": asyncio.Event()}, limits=LIMITED)
    task = fleet.start(**chat(fleet, max_tokens=500))
    await fleet.settle()
    await stop(task)
    assert left(fleet) < 500


async def test_a_host_without_tokens_is_passed_over_and_then_waited_for() -> None:
    fleet = Fleet({"a": answer(10, 490), "b": answer(10, 490)}, limits=LIMITED)
    for _ in range(4):
        await fleet.send(**chat(fleet, max_tokens=480))
    assert fleet.counts() == {"a": 2, "b": 2}
    late = fleet.start(**chat(fleet, max_tokens=100))
    await fleet.settle()
    assert not late.done()
    await fleet.clock.advance(9.0)
    assert late.result().status_code == 200


async def test_what_a_host_says_of_its_limits_is_heeded() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "5s",
    }
    fleet = Fleet({"a": lambda _: httpx.Response(200, headers=headers, json={}), "b": 200})
    for _ in range(4):
        await fleet.send()
    assert fleet.counts() == {"a": 1, "b": 3}
    assert fleet["a"].snapshot()["token_limits"]["requests"]["named"] == 60


@pytest.mark.parametrize(("words", "expected"), [(4, ["a", "b"]), (4000, ["b", "b"])])
async def test_a_long_request_goes_where_it_can_be_read(words: int, expected: Any) -> None:
    each = {"a": {"context_length": 1000}, "b": {"context_length": 100_000}}
    fleet = Fleet({"a": answer(1, 1), "b": answer(1, 1)}, each=each)
    for _ in range(2):
        await fleet.send(**chat(fleet, words))
    assert fleet.asked == expected


async def test_where_nobody_can_read_so_much_the_host_has_the_last_word() -> None:
    fleet = Fleet({"a": 400}, context_length=100)
    assert (await fleet.send(**chat(fleet, 4000))).status_code == 400


async def test_an_error_of_the_strategy_is_for_the_call_that_waited() -> None:
    fleet, ends = full_fleet("a")
    first, second = fleet.start(), fleet.start()
    await fleet.settle()

    def broken(*_: Any) -> Any:
        raise ValueError("a bug")

    fleet.strategy.pick = broken
    ends["a"].set()
    await fleet.settle()
    assert first.result().status_code == 200
    assert isinstance(second.exception(), ValueError)
    assert fleet.in_flight == {"a": 0}


async def test_a_prefix_that_everybody_shares_does_not_drown_its_host() -> None:
    """The one host that knows a prefix must not get all calls that begin with it."""
    strategy = strategy_of(LoadBalancingStrategy.PREFIX, random.Random(5))
    fleet = Fleet(dict.fromkeys("abc", asyncio.Event()), strategy=strategy)
    tasks = [fleet.start(**chat(fleet, 400)) for _ in range(400)]
    await fleet.settle()
    assert sum(fleet.in_flight.values()) == 400
    assert max(fleet.in_flight.values()) <= 300
    assert min(fleet.in_flight.values()) >= 20
    await stop(*tasks)
    assert set(fleet.in_flight.values()) == {0}
