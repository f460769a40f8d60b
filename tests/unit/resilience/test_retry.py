import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    CallRefusedError,
    CircuitOpenError,
    Event,
    Listeners,
    RetryConfig,
    RetryLayer,
    RetryScheduled,
    Send,
    ServiceError,
    Verdict,
    deadline,
    stack,
)
from shared.infrastructure.resilience.layer import PlainCall
from shared.infrastructure.testing import FakeClock, ScriptedSend


class Reply:
    """An answer with a status, as a protocol would have it."""

    def __init__(self, verdict: Verdict, retry_after: float | None = None) -> None:
        self.verdict = verdict
        self.retry_after = retry_after
        self.discarded = False


class ReplySemantics(PlainCall):
    def __init__(self, repeatable: bool = True) -> None:
        self._repeatable = repeatable

    def judge(self, outcome: object) -> Verdict:
        return outcome.verdict if isinstance(outcome, Reply) else super().judge(outcome)

    def repeatable(self, request: object, outcome: object) -> bool:
        return self._repeatable

    async def discard(self, response: Any) -> None:
        response.discarded = True


OK = Reply(Verdict.OK)


def retrying(
    script: ScriptedSend[Any], config: RetryConfig, clock: FakeClock, **options: Any
) -> Send[str, Any]:
    semantics = options.pop("semantics", ReplySemantics())
    return stack(script, RetryLayer(config, clock=clock, **options), semantics=semantics)


async def finish(clock: FakeClock, call: Any, seconds: float = 1000.0) -> Any:
    task = asyncio.ensure_future(call)
    await clock.advance(seconds)
    assert task.done()
    return await task


NO_JITTER = RetryConfig(jitter=False)


async def test_a_success_is_sent_once_and_touches_no_timer() -> None:
    clock, script = FakeClock(), ScriptedSend([OK])
    assert await retrying(script, NO_JITTER, clock)("x") is OK
    assert len(script.requests) == 1
    assert clock.pending == 0


async def test_failures_are_repeated_after_exponentially_growing_delays() -> None:
    told: list[Event] = []
    clock, script = (
        FakeClock(),
        ScriptedSend([ValueError("a"), ValueError("b"), ValueError("c"), OK]),
    )
    send = retrying(script, NO_JITTER, clock, listeners=Listeners([told.append]))
    assert await finish(clock, send("x")) is OK
    assert [event.delay for event in told if isinstance(event, RetryScheduled)] == [1.0, 2.0, 4.0]
    assert len(script.requests) == 4


async def test_the_last_error_is_raised_with_the_story_of_the_call() -> None:
    errors = [ServiceError(str(number)) for number in range(4)]
    clock, script = FakeClock(), ScriptedSend(errors)
    with pytest.raises(ServiceError) as caught:
        await finish(clock, retrying(script, NO_JITTER, clock)("x"))
    assert caught.value is errors[3]
    assert caught.value.attempts == 4
    assert caught.value.earlier == tuple(errors[:3])


async def test_the_last_failed_answer_is_returned_and_the_earlier_ones_are_discarded() -> None:
    replies = [Reply(Verdict.FAILED) for _ in range(4)]
    clock, script = FakeClock(), ScriptedSend(replies)
    assert await finish(clock, retrying(script, NO_JITTER, clock)("x")) is replies[3]
    assert [reply.discarded for reply in replies] == [True, True, True, False]


@pytest.mark.parametrize(
    "outcome", [CallRefusedError("no"), Reply(Verdict.VOID), Reply(Verdict.BUSY), OK]
)
async def test_refusals_void_busy_and_good_outcomes_are_not_repeated(outcome: Any) -> None:
    clock, script = FakeClock(), ScriptedSend([outcome, OK])
    with contextlib.suppress(CallRefusedError):
        await finish(clock, retrying(script, NO_JITTER, clock)("x"))
    assert len(script.requests) == 1


async def test_busy_answers_are_repeated_when_asked_for_and_not_before_the_time_they_name() -> None:
    config = RetryConfig(jitter=False, base_delay=0.1, retry_busy=True)
    clock, script = FakeClock(), ScriptedSend([Reply(Verdict.BUSY, retry_after=7.0), OK])
    task = asyncio.ensure_future(retrying(script, config, clock)("x"))
    await clock.advance(6.9)
    assert len(script.requests) == 1
    await clock.advance(0.2)
    assert await task is OK


async def test_a_service_that_asks_for_too_long_a_wait_is_given_up_at_once() -> None:
    reply = Reply(Verdict.FAILED, retry_after=3600.0)
    clock, script = FakeClock(), ScriptedSend([reply])
    assert await finish(clock, retrying(script, NO_JITTER, clock)("x"), 0.0) is reply
    assert len(script.requests) == 1


async def test_a_wait_beyond_the_deadline_is_given_up_at_once() -> None:
    clock, script = FakeClock(), ScriptedSend([ValueError("down")])

    async def call() -> None:
        async with deadline(2.5, clock=clock):
            await retrying(script, NO_JITTER, clock)("x")

    with pytest.raises(ValueError, match="down"):
        await finish(clock, call(), 1.0)
    assert len(script.requests) == 2


async def test_a_refusal_during_the_retries_ends_the_call_and_is_no_attempt() -> None:
    refused = CircuitOpenError("open")
    clock, script = FakeClock(), ScriptedSend([ServiceError("down"), refused])
    with pytest.raises(CircuitOpenError) as caught:
        await finish(clock, retrying(script, NO_JITTER, clock)("x"))
    assert caught.value.attempts == 1
    assert [str(error) for error in caught.value.earlier] == ["down"]


async def test_what_must_not_be_sent_twice_is_not() -> None:
    clock, script = FakeClock(), ScriptedSend([ValueError("unknown fate")])
    send = retrying(script, NO_JITTER, clock, semantics=ReplySemantics(repeatable=False))
    with pytest.raises(ValueError, match="unknown fate"):
        await finish(clock, send("x"))
    assert len(script.requests) == 1


async def test_cancelling_a_call_that_waits_for_its_retry_leaves_nothing_behind() -> None:
    clock, script = FakeClock(), ScriptedSend([ValueError("down")])
    task = asyncio.ensure_future(retrying(script, NO_JITTER, clock)("x"))
    await clock.advance(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.pending == 0


async def test_cancelling_a_call_in_the_middle_of_a_retry_comes_out_as_a_cancellation() -> None:
    clock, attempts = FakeClock(), 0

    async def fail_then_hang(_request: str) -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ValueError("down")
        return await asyncio.get_running_loop().create_future()

    send = stack(fail_then_hang, RetryLayer(NO_JITTER, clock=clock), semantics=PLAIN_CALL)
    task = asyncio.ensure_future(send("x"))
    await clock.advance(1.0)
    assert attempts == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_retry_elsewhere_does_not_wait() -> None:
    at_once: Callable[[Any], bool] = lambda _request: True  # noqa: E731
    clock, script = FakeClock(), ScriptedSend([ValueError("down"), OK])
    assert await finish(clock, retrying(script, NO_JITTER, clock, at_once=at_once)("x"), 0.0) is OK


def test_jitter_is_drawn_below_the_cap_so_that_late_retries_stay_spread() -> None:
    config, rng = RetryConfig(base_delay=1.0, max_delay=10.0), random.Random(7)
    late = [config.delay(50, rng) for _ in range(200)]
    assert max(late) <= 10.0
    assert min(late) < 1.0
    assert len({round(delay, 6) for delay in late}) > 190
    assert config.delay(10_000, rng) <= 10.0
