"""Hedges and the hosts: whether one has room for them, and which legs were never sent."""

import asyncio
from typing import Any

import pytest

from shared.infrastructure.balancing.call import Call
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.balancing.hosts import HostLimits
from shared.infrastructure.resilience import RateLimitConfig
from shared.infrastructure.resilience.hedge import OVERTAKEN, UNSENT
from tests.unit.balancing.fleet import First, Fleet, busy

ONE: dict[str, Any] = {"limits": HostLimits(max_in_flight=1)}

PACE = RateLimitConfig(requests_per_second=1.0, burst_size=1)


async def late(fleet: Fleet) -> tuple[Call, asyncio.Task[Any]]:
    """Begin a call that stays where it is; the task returns what ends it."""

    async def send() -> Any:
        try:
            return await fleet.send(call)
        except asyncio.CancelledError as exc:
            return exc

    call = fleet.call()
    task = asyncio.create_task(send())
    await fleet.settle()
    return call, task


async def ended(*tasks: asyncio.Task[Any], words: str | None = None) -> Any:
    for task in tasks:
        task.cancel(words)
    return (await asyncio.gather(*tasks, return_exceptions=True))[0]


async def test_a_full_host_is_nothing_against_hedges_at_another() -> None:
    fleet = Fleet({"a": asyncio.Event(), "b": 200, "c": 200}, strategy=First(), **ONE)
    call, task = await late(fleet)
    assert fleet["a"].in_flight == fleet["a"].room
    assert fleet.balance.has_room(call)
    await ended(task)


@pytest.mark.parametrize("state", ["full", "throttled", "open", "tried", "out of pace"])
async def test_without_another_host_that_takes_it_at_once_a_call_is_not_hedged(state: str) -> None:
    event = asyncio.Event()
    steps: dict[str, Any] = {"full": event, "throttled": busy(60), "open": 500}
    fleet = Fleet(
        {"a": event, "b": steps.get(state, 200)},
        strategy=First(),
        each={"b": ONE},
        policy={"rate_limit": PACE} if state == "out of pace" else {},
    )
    fleet.roster.enable("a", False)
    others = [fleet.start() for _ in range(2 if state == "open" else 1)]
    await fleet.settle()
    if state == "open":
        await fleet.statuses(fleet.call(), 1)
    fleet.roster.enable("a", True)
    call, task = await late(fleet)
    assert fleet.asked[-1] == "a"
    if state == "tried":
        assert fleet.balance.has_room(call)
        call.left["b"] = 1
    assert not fleet.balance.has_room(call)
    await ended(task, *others)


async def test_nobody_is_hedged_past_those_who_wait_for_room() -> None:
    fleet = Fleet({"a": asyncio.Event(), "b": 200}, strategy=First(), each={"a": ONE})
    call, task = await late(fleet)
    assert fleet.balance.has_room(call)
    fleet.roster.enable("b", False)
    waiting = fleet.start()
    await fleet.settle()
    assert not fleet.balance.has_room(call)
    await ended(task, waiting)


async def test_a_leg_that_waited_in_line_was_not_sent() -> None:
    fleet = Fleet({"a": asyncio.Event()}, **ONE)
    _, task = await late(fleet)
    _, waiting = await late(fleet)
    assert UNSENT in vars(await ended(waiting))
    assert UNSENT not in vars(await ended(task))


async def test_who_waits_for_its_key_is_not_silent() -> None:
    """A leg that was overtaken before it was sent says nothing of its host."""
    given = asyncio.Event()

    async def key() -> str:
        await given.wait()
        return "k"

    fleet = Fleet({"a": asyncio.Event()}, api_key=key)
    call, task = await late(fleet)
    assert UNSENT in vars(await ended(task, words=OVERTAKEN))
    assert (fleet.asked, call.attempts, call.is_fresh("a")) == ([], [], True)
    snapshot = fleet["a"].snapshot()
    assert (snapshot["error_count"], snapshot["health"]["consecutive_failures"]) == (0, 0)
    assert fleet["a"].latency(None, fleet.clock.now()) is None


async def test_who_was_sent_and_overtaken_while_silent_is_held_to_account() -> None:
    fleet = Fleet({"a": asyncio.Event()})
    call, task = await late(fleet)
    await fleet.clock.advance(2.0)
    error = await ended(task, words=OVERTAKEN)
    assert UNSENT not in vars(error)
    assert call.attempts[0].fault is Fault.SILENT
    snapshot = fleet["a"].snapshot()
    assert (snapshot["error_count"], snapshot["health"]["consecutive_failures"]) == (1, 1)
    assert fleet["a"].latency(None, fleet.clock.now()) == pytest.approx(2.0)
