"""What the rate-limit layer tells its limiter of each outcome."""

import asyncio
import math
from typing import Any

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    RateLimitLayer,
    RateLimitStrategy,
    TokenBucket,
    Verdict,
    stack,
)
from shared.infrastructure.resilience.layer import PlainCall
from shared.infrastructure.testing import FakeClock, ScriptedSend


class Busy(PlainCall):
    """Answers and errors that ask for patience."""

    def judge(self, outcome: object) -> Verdict:
        is_busy = outcome == "busy" or isinstance(outcome, BlockingIOError)
        return Verdict.BUSY if is_busy else super().judge(outcome)

    def retry_after(self, outcome: object) -> float | None:
        return 30.0 if self.judge(outcome) is Verdict.BUSY else None


class Learner(TokenBucket):
    """Remembers what it is told."""

    def __init__(self, clock: FakeClock, *, adapts: bool) -> None:
        super().__init__(8.0, 8, clock=clock)
        self.adapts = adapts
        self.told: list[tuple[Verdict, float]] = []

    def record(self, verdict: Verdict, *, granted_at: float = math.inf) -> None:
        self.told.append((verdict, granted_at))


def test_a_strategy_is_named_as_it_is_written_in_a_config() -> None:
    assert set(RateLimitStrategy) == {"token_bucket", "sliding_window", "sliding_counter"}


@pytest.mark.parametrize("outcome", ["busy", BlockingIOError()])
async def test_an_outcome_that_asks_for_patience_pauses_everybody(outcome: Any) -> None:
    bucket = TokenBucket(8.0, 8, clock=FakeClock())
    send = stack(ScriptedSend([outcome]), RateLimitLayer(bucket), semantics=Busy())
    await asyncio.gather(send("x"), return_exceptions=True)
    assert bucket.snapshot()["paused_for"] == 30.0
    assert not bucket.try_acquire()


async def test_a_good_answer_pauses_nobody() -> None:
    bucket = TokenBucket(8.0, 8, clock=FakeClock())
    send = stack(ScriptedSend(["ok"]), RateLimitLayer(bucket), semantics=Busy())
    assert await send("x") == "ok"
    assert bucket.snapshot()["paused_for"] == 0.0


async def test_a_limiter_that_adapts_is_told_of_good_answers_too_and_of_its_permit() -> None:
    clock = FakeClock()
    learner = Learner(clock, adapts=True)
    script = ScriptedSend(["ok", "busy", KeyError()])
    send = stack(script, RateLimitLayer(learner), semantics=Busy())
    granted_at = clock.now()
    await send("x")
    await send("x")
    learner._paused_until = learner._free_from = -math.inf
    learner._full_at = -math.inf
    with pytest.raises(KeyError):
        await send("x")
    assert learner.told == [
        (Verdict.OK, granted_at),
        (Verdict.BUSY, granted_at),
        (Verdict.FAILED, granted_at),
    ]


async def test_one_that_does_not_adapt_is_spared_the_good_answers() -> None:
    learner = Learner(FakeClock(), adapts=False)
    send = stack(ScriptedSend(["ok"]), RateLimitLayer(learner), semantics=Busy())
    await send("x")
    assert learner.told == []


async def test_a_cancelled_call_teaches_nothing_and_keeps_its_permit_spent() -> None:
    clock = FakeClock()
    learner = Learner(clock, adapts=True)

    async def hang(_request: str) -> None:
        await clock.sleep(100.0)

    call = asyncio.ensure_future(stack(hang, RateLimitLayer(learner), semantics=PLAIN_CALL)("x"))
    await clock.advance(1.0)
    call.cancel()
    await asyncio.wait([call])
    assert learner.told == []
    assert learner.snapshot()["granted"] == 1
