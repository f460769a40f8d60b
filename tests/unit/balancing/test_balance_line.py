"""The line: who may go before whom, who is let go early, and how it moves after a pause."""

import asyncio
import itertools
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.call import Call, RequestFacts
from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.dialects import dialect_of
from shared.infrastructure.balancing.errors import NoHostAvailableError, NotRunningError
from shared.infrastructure.balancing.hosts import HostLimits, LLMHost
from shared.infrastructure.balancing.pool import HostPool
from shared.infrastructure.http.extensions import BUFFERED
from shared.infrastructure.resilience import ConfigurationError
from tests.unit.balancing.fleet import Fleet, busy, request

CHAT = "/v1/chat/completions"
ONE = HostLimits(max_in_flight=1)
PER_MINUTE = HostLimits(tokens_per_minute=600)
PATIENT = BalanceConfig(queue_timeout=40.0, max_wait=40.0, slow_start=0.0)


def chat(fleet: Fleet, tokens: int) -> Any:
    """Return the content of a call that is expected to cost a little more than `tokens`."""
    payload = {
        "model": "m",
        "messages": [{"role": "user", "content": "word"}],
        "max_tokens": tokens,
    }
    call = fleet.call(dialect=dialect_of(CHAT), model="m", payload=payload)
    return {"call": call, "path": CHAT, "json": payload, "extensions": {BUFFERED: True}}


def costly(sent: httpx.Request) -> httpx.Response:
    """Answer, having written all that was allowed."""
    written = int(sent.read().split(b'"max_tokens":')[1].strip(b" }"))
    usage = {"prompt_tokens": 1, "completion_tokens": written, "total_tokens": written + 1}
    message = {"role": "assistant", "content": "hi"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return httpx.Response(
        200, json={"object": "chat.completion", "choices": choices, "usage": usage}
    )


async def stop(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_call_that_fits_goes_before_one_that_does_not() -> None:
    fleet = Fleet({"a": costly}, limits=PER_MINUTE, balance=PATIENT)
    await fleet.send(**chat(fleet, 500))
    large = fleet.start(**chat(fleet, 200))
    await fleet.settle()
    small = fleet.start(**chat(fleet, 5))
    await fleet.settle()
    assert (large.done(), small.done()) == (False, True)
    await fleet.clock.advance(20.0)
    assert large.result().status_code == 200


async def test_small_calls_without_end_do_not_starve_a_large_one() -> None:
    fleet = Fleet({"a": costly}, limits=PER_MINUTE, balance=PATIENT)
    await fleet.send(**chat(fleet, 500))
    large = fleet.start(**chat(fleet, 250))
    small: list[asyncio.Task[Any]] = []
    for _ in range(39):
        small.append(fleet.start(**chat(fleet, 10)))
        await fleet.clock.advance(1.0)
    assert large.result().status_code == 200
    assert sum(task.done() for task in small) > 5
    await stop(*small)


async def test_every_host_has_a_reason_even_one_with_room() -> None:
    balance = BalanceConfig(queue_timeout=1.0, max_wait=100.0)
    each: Any = {"a": {"limits": PER_MINUTE}, "b": {"limits": ONE}}
    fleet = Fleet({"a": costly, "b": asyncio.Event()}, each=each, balance=balance)
    await fleet.send(**chat(fleet, 590))
    busy_one = fleet.start(**chat(fleet, 500))
    await fleet.settle()
    late = fleet.start(**chat(fleet, 500))
    await fleet.clock.advance(1.0)
    error = late.exception()
    assert isinstance(error, NoHostAvailableError)
    assert set(error.reasons) == set(error.faults) == {"a", "b"}
    assert error.faults["a"] == "throttled"
    await stop(busy_one)


def close_circuits(fleet: Fleet) -> None:
    breaker = fleet["a"].lanes.get(None).breaker
    assert breaker is not None
    breaker.open_for(30.0)


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda fleet: fleet.roster.remove("a"), {}),
        (lambda fleet: fleet.roster.enable("a", False), {"a": "it is disabled"}),
        (close_circuits, {"a": "its circuit is open"}),
    ],
)
async def test_who_waits_in_vain_is_told_at_once(change: Any, reasons: dict[str, str]) -> None:
    fleet = Fleet({"a": asyncio.Event()}, limits=ONE)
    tasks = [fleet.start() for _ in range(3)]
    await fleet.settle()
    change(fleet)
    await fleet.settle()
    errors = [task.exception() for task in tasks[1:]]
    assert all(isinstance(error, NoHostAvailableError) for error in errors)
    assert [error.reasons for error in errors] == [reasons, reasons]  # type: ignore[union-attr]
    assert fleet.balance.snapshot()["waiting"] == 0
    await stop(*tasks)


async def test_who_may_still_be_served_goes_on_waiting_when_a_host_goes() -> None:
    fleet = Fleet({"a": asyncio.Event(), "b": asyncio.Event()}, limits=ONE)
    tasks = [fleet.start() for _ in range(3)]
    await fleet.settle()
    fleet.roster.remove("a")
    await fleet.settle()
    assert not tasks[2].done()
    await stop(*tasks)


async def test_closing_lets_everybody_go_and_nobody_in() -> None:
    fleet = Fleet({"a": asyncio.Event()}, limits=ONE)
    tasks = [fleet.start() for _ in range(3)]
    await fleet.settle()
    fleet.balance.close()
    await fleet.settle()
    assert [type(task.exception()) for task in tasks[1:]] == [NotRunningError] * 2
    assert not tasks[0].done()
    with pytest.raises(NotRunningError):
        await fleet.send()
    assert len(fleet.asked) == 1
    await stop(*tasks)


async def test_after_a_pause_not_all_who_waited_come_at_once() -> None:
    fleet = Fleet({"a": [busy(2), asyncio.Event()]})
    await fleet.send()
    tasks = [fleet.start() for _ in range(60)]
    await fleet.clock.advance(2.0)
    seen = [len(fleet.asked) - 1]
    for _ in range(6):
        await fleet.clock.advance(0.25)
        seen.append(len(fleet.asked) - 1)
    assert seen[0] == 1
    assert seen == sorted(set(seen))
    assert all(later <= 2 * sooner + 1 for sooner, later in itertools.pairwise(seen))
    await fleet.clock.advance(1.0)
    assert len(fleet.asked) == 61
    await stop(*tasks)


async def test_after_a_pause_good_answers_let_the_next_call_in() -> None:
    fleet = Fleet({"a": [busy(2), 200]})
    await fleet.send()
    tasks = [fleet.start() for _ in range(60)]
    await fleet.clock.advance(2.0)
    for _ in range(60):
        await fleet.settle()
    assert all(task.done() for task in tasks)


async def test_stopping_the_pool_releases_who_waits_and_closes_the_rest_after_an_error() -> None:
    pool = HostPool(
        [LLMHost(name, f"http://{name}", limits=ONE) for name in "ab"],
        transport=httpx.MockTransport(lambda _: httpx.Response(200)),
    )
    closed: list[str] = []

    async def broken() -> None:
        raise ConfigurationError("another event loop")

    async def close() -> None:
        closed.append("b")

    pool.hosts[0]._stack.health.stop = broken  # type: ignore[method-assign]
    pool.hosts[1]._stack._wire.aclose = close  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match="another event loop"):
        await pool.stop()
    assert closed == ["b"]
    call = Call(RequestFacts(), max_attempts=1)
    with pytest.raises(NotRunningError):
        await pool.balance(request(call))
