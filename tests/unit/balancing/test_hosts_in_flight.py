"""A host's calls in flight are given back exactly once, whatever becomes of them."""

import asyncio
import gc
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.accounting import TokenLimits
from shared.infrastructure.balancing.errors import SilenceError
from shared.infrastructure.balancing.faults import RULES, Fault
from shared.infrastructure.http import PoolTimeoutError
from shared.infrastructure.resilience import BulkheadConfig, BulkheadFullError
from tests.unit.balancing.fleet import Fleet, Stream, busy, streamed


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (200, None),
        (500, Fault.BROKEN),
        (503, Fault.OVERLOADED),
        (400, Fault.REJECTED),
        (401, Fault.MISCONFIGURED),
        (404, Fault.NO_MODEL),
        (busy(), Fault.THROTTLED),
        (httpx.ConnectError("refused"), Fault.BROKEN),
        (httpx.ReadTimeout("silent"), Fault.SILENT),
        (httpx.PoolTimeout("ours"), Fault.OURS),
        (SilenceError("nothing"), Fault.SILENT),
        (ValueError("a bug"), Fault.OURS),
    ],
)
async def test_a_call_that_is_over_is_not_in_flight(step: Any, fault: Fault | None) -> None:
    fleet = Fleet({"a": step})
    call = fleet.call()
    await fleet.statuses(call, 1)
    assert fleet.in_flight == {"a": 0}
    assert [attempt.fault for attempt in call.attempts] == [fault]
    assert not call.busy


async def test_a_stream_is_in_flight_until_its_end() -> None:
    fleet = Fleet({"a": streamed(b"1", b"2")})
    call = fleet.call()
    response = await fleet.send(call)
    assert (fleet.in_flight, call.busy) == ({"a": 1}, {"a"})
    assert await response.aread() == b"12"
    assert (fleet.in_flight, call.busy) == ({"a": 0}, set())
    assert call.attempts[0].outcome == "answered"


async def test_a_stream_that_breaks_off_is_over_and_speaks_against_its_host() -> None:
    fleet = Fleet({"a": streamed(b"1", httpx.ReadError("gone"))})
    call = fleet.call()
    response = await fleet.send(call)
    with pytest.raises(httpx.ReadError):
        await response.aread()
    assert fleet.in_flight == {"a": 0}
    assert call.attempts[0].fault is Fault.BROKEN
    assert fleet["a"].snapshot()["circuit_breaker"]["failure_count"] == 1


async def test_a_stream_that_is_closed_before_its_end_is_over() -> None:
    fleet = Fleet({"a": streamed(b"1", b"2")})
    response = await fleet.send()
    await response.aclose()
    await response.aclose()
    assert fleet.in_flight == {"a": 0}


async def test_a_stream_whose_reader_is_cancelled_is_over_and_blames_nobody() -> None:
    fleet = Fleet({"a": streamed(b"1", asyncio.Event())})
    call = fleet.call()
    response = await fleet.send(call)
    reader = asyncio.ensure_future(response.aread())
    await fleet.settle()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await response.aclose()
    assert fleet.in_flight == {"a": 0}
    assert call.attempts[0].fault is Fault.OURS
    assert fleet["a"].snapshot()["circuit_breaker"]["failure_count"] == 0


async def test_a_response_that_nobody_has_any_more_is_over() -> None:
    fleet = Fleet({"a": streamed(b"1", b"2")})
    call = fleet.call()
    response: httpx.Response | None = await fleet.send(call)
    assert fleet.in_flight == {"a": 1}
    assert response is not None
    response = None
    gc.collect()
    await fleet.settle()
    assert fleet.in_flight == {"a": 0}
    assert call.attempts[0].outcome == "abandoned"


async def test_an_error_whose_body_nobody_reads_counts_at_once_and_is_released_with_it() -> None:
    fleet = Fleet({"a": lambda _: httpx.Response(500, stream=streamed(b"x")(_).stream)})
    call = fleet.call()
    response = await fleet.send(call)
    assert call.attempts[0].fault is Fault.BROKEN
    assert call.may_try("a")  # a single host may be asked again before the body is let go
    await response.aclose()
    assert fleet.in_flight == {"a": 0}
    assert call.left == {"a": RULES[Fault.BROKEN].same_host}  # counted once


async def test_a_cancelled_call_is_over_at_once() -> None:
    fleet = Fleet({"a": asyncio.Event()})
    call = fleet.call()
    task = fleet.start(call)
    await fleet.settle()
    assert fleet.in_flight == {"a": 1}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert fleet.in_flight == {"a": 0}
    assert [attempt.fault for attempt in call.attempts] == [Fault.OURS]


async def test_what_is_refused_before_it_is_sent_is_no_attempt() -> None:
    bulkhead = BulkheadConfig(max_concurrent=1, max_queue=0)
    fleet = Fleet({"a": 200}, policy={"bulkhead": bulkhead})
    await fleet["a"]._stack.guard.bulkhead.acquire()  # taken by somebody else
    call = fleet.call()
    with pytest.raises(BulkheadFullError):
        await fleet["a"].send(httpx.Request("GET", "http://pool/x", extensions={"call": call}))
    assert (call.attempts, call.busy, call.left) == ([], set(), {})
    assert fleet.in_flight == {"a": 0}
    assert fleet["a"].snapshot()["refused_count"] == 1


async def test_a_loser_of_a_race_gives_its_place_back() -> None:
    fleet = Fleet({"a": asyncio.Event(), "b": 200})
    call = fleet.call()
    loser, winner = fleet.start(call), fleet.start(call)
    assert (await winner).status_code == 200
    loser.cancel()
    await asyncio.gather(loser, return_exceptions=True)
    assert fleet.in_flight == {"a": 0, "b": 0}
    assert [attempt.is_hedge for attempt in call.attempts] == [False, True]


async def test_the_load_is_relative_to_the_weight() -> None:
    fleet = Fleet({"a": asyncio.Event()}, weight=4.0)
    tasks = [fleet.start() for _ in range(2)]
    await fleet.settle()
    assert (fleet["a"].in_flight, fleet["a"].load) == (2, 0.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert fleet["a"].load == 0.0


async def test_a_full_pool_of_our_own_blames_no_host() -> None:
    fleet = Fleet({"a": httpx.PoolTimeout("busy")})
    for _ in range(20):
        with pytest.raises(PoolTimeoutError):
            await fleet.send()
    snapshot = fleet["a"].snapshot()
    assert snapshot["state"] == "ready"
    assert snapshot["circuit_breaker"]["failure_count"] == 0
    assert snapshot["error_count"] == 0


async def test_an_answer_that_cannot_be_taken_note_of_is_closed_and_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(TokenLimits, "observe", broken)
    body = Stream(b"1")
    headers = {"x-ratelimit-limit-requests": "1"}
    fleet = Fleet({"a": lambda _: httpx.Response(200, headers=headers, stream=body)})
    with pytest.raises(ValueError, match="a bug"):
        await fleet.send()
    assert fleet.in_flight == {"a": 0}
    assert body.is_closed
