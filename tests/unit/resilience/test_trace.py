import asyncio
import contextlib
import json
from typing import Any

import pytest

from shared.infrastructure.resilience import (
    CircuitOpenError,
    FallbackUsed,
    Listeners,
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
    RetryGivenUp,
    RetryLayer,
    ServiceError,
    SingleFlight,
    Verdict,
    deadline,
    stack,
    trace_call,
)
from shared.infrastructure.resilience.layer import PLAIN_CALL, PlainCall
from shared.infrastructure.resilience.trace import Trace, current_trace
from shared.infrastructure.testing import FakeClock, ScriptedSend

NO_JITTER = RetryConfig(jitter=False)
DECIDED = FallbackUsed("a", "down")


class Reply:
    def __init__(self, verdict: Verdict, retry_after: float | None = None) -> None:
        self.verdict = verdict
        self.retry_after = retry_after


class Semantics(PlainCall):
    def judge(self, outcome: object) -> Verdict:
        return outcome.verdict if isinstance(outcome, Reply) else super().judge(outcome)

    def repeatable(self, request: object, outcome: object) -> bool:
        return request != "once"

    def describe(self, request: object, outcome: object) -> str:
        if isinstance(outcome, Reply):
            return outcome.verdict.value.upper()
        return super().describe(request, outcome)


FAILED, BUSY, VOID = (Reply(Verdict[name]) for name in ("FAILED", "BUSY", "VOID"))


async def traced(clock: FakeClock, call: Any, seconds: float = 100.0) -> Trace:
    task = asyncio.ensure_future(trace_of(clock, call))
    await clock.advance(seconds)
    return await task


async def trace_of(clock: FakeClock, call: Any) -> Trace:
    with trace_call(clock=clock) as trace, contextlib.suppress(Exception):
        await call
    return trace


def kinds(trace: Trace) -> list[str]:
    return [entry.event.kind for entry in trace.entries]


def reasons(trace: Trace) -> list[str]:
    return [entry.event.reason for entry in trace.entries if isinstance(entry.event, RetryGivenUp)]


async def test_a_trace_tells_every_decision_in_order_and_when_it_was_made() -> None:
    clock = FakeClock()

    async def slow(_request: str) -> Any:
        await clock.sleep(0.25)
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    outcomes: list[Any] = [
        Reply(Verdict.FAILED, 4.0),
        ValueError("no  such\nhost"),
        Reply(Verdict.OK),
    ]
    budget = RetryBudget(RetryBudgetConfig(min_retries_per_second=0), clock=clock)
    layer = RetryLayer(NO_JITTER, name="search", budget=budget, clock=clock)
    trace = await traced(clock, stack(slow, layer, semantics=Semantics())("x"))
    assert str(trace).splitlines() == [
        "   0.250 s  search: attempt 1 failed: FAILED",
        "   0.250 s  search: paid 10 of the retry budget, 90 left",
        "   0.250 s  search: retry in 4 s: the service asked for it",
        "   4.500 s  search: attempt 2 failed: ValueError: no such host",
        "   4.500 s  search: paid 10 of the retry budget, 80 left",
        "   4.500 s  search: retry in 2 s: backoff",
        "   6.750 s  search: attempt 3 ok: OK",
        "   6.750 s  done",
    ]
    data = trace.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert (data["outcome"], data["elapsed"], data["dropped"]) == ("done", 6.75, 0)
    assert data["entries"][2] == {
        "at": 0.25,
        "event": "retry_scheduled",
        "service": "search",
        "attempt": 1,
        "delay": 4.0,
        "cause": "FAILED",
        "reason": "retry_after",
    }


async def test_a_call_that_succeeds_at_once_has_nothing_to_tell() -> None:
    clock = FakeClock()
    send = stack(ScriptedSend(["ok"]), RetryLayer(NO_JITTER, clock=clock), semantics=PLAIN_CALL)
    assert (await traced(clock, send("x"))).entries == ()


@pytest.mark.parametrize(
    ("outcomes", "config", "reason"),
    [
        ([FAILED], RetryConfig(max_retries=0), "attempts"),
        ([FAILED], RetryConfig(max_retries=2, jitter=False), "attempts"),
        ([ValueError("down"), CircuitOpenError("open")], NO_JITTER, "refused"),
        ([FAILED, VOID], NO_JITTER, "void"),
        ([BUSY], NO_JITTER, "busy"),
        ([Reply(Verdict.FAILED, 3600.0)], NO_JITTER, "retry_after"),
        ([FAILED], RetryConfig(base_delay=60.0, jitter=False), "deadline"),
        ([FAILED], RetryConfig(max_retries=99, base_delay=0.0), "budget"),
        ([FAILED], RetryConfig(stop=lambda _: True), "stop"),
    ],
)
async def test_a_call_that_is_given_up_says_why(
    outcomes: list[Any], config: RetryConfig, reason: str
) -> None:
    clock = FakeClock()
    budget = RetryBudget(RetryBudgetConfig(min_retries_per_second=0), clock=clock)
    layer = RetryLayer(config, clock=clock, budget=budget)
    send = stack(ScriptedSend(outcomes), layer, semantics=Semantics())

    async def call() -> None:
        async with deadline(50.0, clock=clock):
            await send("x")

    assert reasons(await traced(clock, call())) == [reason]


async def test_a_request_that_must_not_be_sent_twice_says_so() -> None:
    clock = FakeClock()
    send = stack(ScriptedSend([FAILED]), RetryLayer(NO_JITTER), semantics=Semantics())
    trace = await traced(clock, send("once"))
    assert kinds(trace) == ["attempt_ended", "retry_given_up"]
    assert reasons(trace) == ["not_repeatable"]


async def test_a_refusal_during_the_retries_is_told_as_the_end_and_not_as_an_attempt() -> None:
    clock, script = FakeClock(), ScriptedSend[Any]([FAILED, CircuitOpenError("open")])
    send = stack(script, RetryLayer(NO_JITTER, clock=clock), semantics=Semantics())
    trace = await traced(clock, send("x"))
    assert kinds(trace) == ["attempt_ended", "retry_scheduled", "retry_given_up"]


@pytest.mark.parametrize("outcome", [CircuitOpenError("open"), VOID])
async def test_what_is_none_of_retrys_business_is_not_told_by_it(outcome: Any) -> None:
    send = stack(ScriptedSend([outcome]), RetryLayer(NO_JITTER), semantics=Semantics())
    assert (await traced(FakeClock(), send("x"))).entries == ()


@pytest.mark.parametrize("is_traced", [True, False])
async def test_the_error_of_a_retried_call_has_its_trace_whether_it_was_asked_for_or_not(
    is_traced: bool,
) -> None:
    clock, error = FakeClock(), ServiceError("down")
    layer = RetryLayer(RetryConfig(max_retries=1, base_delay=0.0), clock=clock)
    send = stack(ScriptedSend([ServiceError("first"), error]), layer, semantics=PLAIN_CALL)
    own = None
    if is_traced:
        own = await traced(clock, send("x"))
    else:
        with pytest.raises(ServiceError):
            await send("x")
    assert error.trace is not None
    assert kinds(error.trace) == [
        "attempt_ended",
        "retry_scheduled",
        "attempt_ended",
        "retry_given_up",
    ]
    assert error.trace.outcome == ("done" if is_traced else "ServiceError: down")
    assert own is None or error.trace is own


async def test_an_error_raised_again_in_another_call_has_the_trace_of_that_call() -> None:
    clock, error = FakeClock(), ServiceError("down")
    send = stack(
        ScriptedSend([error]), RetryLayer(RetryConfig(max_retries=0)), semantics=PLAIN_CALL
    )
    first, second = await traced(clock, send("x")), await traced(clock, send("x"))
    assert error.trace is second is not first


def test_an_error_made_in_a_traced_call_knows_its_trace() -> None:
    assert ServiceError("down").trace is None
    with trace_call() as trace:
        assert ServiceError("down").trace is trace
        assert current_trace() is trace
    assert current_trace() is None


def test_an_outer_trace_gets_what_the_inner_one_gets() -> None:
    tell = Listeners()
    with trace_call() as outer:
        tell(DECIDED)
        with trace_call() as inner:
            tell(DECIDED)
        tell(DECIDED)
    assert (len(outer.entries), len(inner.entries)) == (3, 1)


def test_a_trace_ends_with_its_block() -> None:
    clock = FakeClock()
    with contextlib.suppress(KeyError), trace_call(clock=clock) as trace:
        clock._now += 2.0
        assert (trace.outcome, trace.elapsed) == (None, 2.0)
        assert str(trace) == "   2.000 s  under way"
        raise KeyError("k")
    clock._now += 5.0
    trace(DECIDED)
    assert trace.entries == ()
    assert str(trace) == "   2.000 s  KeyError: 'k'"


def test_a_trace_keeps_its_beginning_and_counts_the_rest() -> None:
    with trace_call(clock=FakeClock()) as trace:
        for _ in range(1003):
            Listeners()(DECIDED)
    assert (len(trace.entries), trace.dropped) == (1000, 3)
    assert str(trace).splitlines()[-2:] == ["         …  3 more", "   0.000 s  done"]


async def test_calls_at_the_same_time_have_traces_of_their_own() -> None:
    clock = FakeClock()
    layer = RetryLayer(NO_JITTER, clock=clock)

    async def fail_for_some(request: str) -> str:
        await clock.sleep(0.1)
        if request == "bad":
            raise ValueError("down")
        return request

    send = stack(fail_for_some, layer, semantics=PLAIN_CALL)
    both = asyncio.gather(trace_of(clock, send("bad")), trace_of(clock, send("good")))
    await clock.advance(100.0)
    bad, good = await both
    assert (len(bad.entries), len(good.entries)) == (8, 0)


async def test_whoever_waits_for_a_shared_computation_gets_what_it_decides_meanwhile() -> None:
    clock, flights = FakeClock(), SingleFlight[str, str]("answers")
    outcomes = [ValueError("1"), ValueError("2"), "fine"]
    send = stack(ScriptedSend(outcomes), RetryLayer(NO_JITTER, clock=clock), semantics=PLAIN_CALL)

    async def call() -> Trace:
        with trace_call(clock=clock) as trace:
            assert await flights.do("k", lambda: send("x")) == "fine"
        return trace

    leader = asyncio.ensure_future(call())
    await clock.advance(0.5)
    joiner = asyncio.ensure_future(call())
    await clock.advance(10.0)
    whole = [
        "attempt_ended",
        "retry_scheduled",
        "attempt_ended",
        "retry_scheduled",
        "attempt_ended",
    ]
    assert kinds(await leader) == whole
    assert kinds(await joiner) == ["flight_joined", *whole[2:]]
