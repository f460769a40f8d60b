"""What hedging counts and tells when no hedge goes."""

import asyncio
import contextlib

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    Event,
    HedgeConfig,
    HedgeLayer,
    Listeners,
    RetryBudget,
    RetryBudgetConfig,
    Verdict,
    stack,
)
from shared.infrastructure.resilience.events import HedgeSkipped
from shared.infrastructure.resilience.hedge_policy import HedgePolicy
from shared.infrastructure.resilience.layer import PlainCall
from shared.infrastructure.testing import FakeClock, ScriptedSend


def test_a_hedge_that_may_not_go_is_counted_and_told_with_its_reason() -> None:
    clock, told = FakeClock(), list[Event]()
    budget = RetryBudget(RetryBudgetConfig(capacity=10, min_retries_per_second=0), clock=clock)
    policy = HedgePolicy(
        HedgeConfig(delay=1.0), budget=budget, clock=clock, listeners=Listeners([told.append])
    )
    assert policy.try_hedge("x")
    assert not policy.try_hedge("x")
    policy.hold_off(5.0)
    assert not policy.try_hedge("x")
    snapshot = policy.snapshot()
    assert (snapshot["hedged_count"], snapshot["skipped_count"]) == (1, 2)
    assert [event for event in told if isinstance(event, HedgeSkipped)] == [
        HedgeSkipped("service", "budget"),
        HedgeSkipped("service", "busy"),
    ]


def test_to_hold_off_ends_at_its_very_end() -> None:
    clock = FakeClock()
    policy = HedgePolicy(HedgeConfig(delay=1.0), clock=clock)
    policy.hold_off()
    clock.stall(0.5)
    assert not policy.try_hedge("x")
    clock.stall(0.5)
    assert policy.try_hedge("x")


async def test_a_call_that_is_not_hedged_passes_on_its_answer_or_error_and_wins_nothing() -> None:
    layer = HedgeLayer(HedgeConfig(), clock=FakeClock())
    error = KeyError("theirs")
    send = stack(ScriptedSend(["ok", error]), layer, semantics=PLAIN_CALL)
    assert await send("x") == "ok"
    with pytest.raises(KeyError) as caught:
        await send("x")
    assert caught.value is error
    snapshot = layer.snapshot()
    assert (snapshot["hedged_count"], snapshot["won_count"]) == (0, 0)


async def test_a_cancelled_caller_leaves_no_timer_for_a_hedge() -> None:
    clock = FakeClock()

    async def hang(_request: str) -> None:
        await asyncio.get_running_loop().create_future()

    layer = HedgeLayer(HedgeConfig(delay=5.0), clock=clock)
    call = asyncio.ensure_future(stack(hang, layer, semantics=PLAIN_CALL)("x"))
    await clock.advance(1.0)
    assert clock.pending == 1
    assert len(layer._tasks) == 1  # the event loop would not hold it
    call.cancel()
    await clock.advance()
    assert clock.pending == 0
    assert not layer._tasks


async def test_an_answer_that_is_discarded_without_trouble_is_no_news(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "shared.infrastructure.resilience.hedge")
    clock = FakeClock()

    async def answer_in_time_for_both(_request: str) -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await clock.sleep(2.0)
        return "ok"

    layer = HedgeLayer(HedgeConfig(delay=1.0), clock=clock)
    call = asyncio.ensure_future(stack(answer_in_time_for_both, layer, semantics=PLAIN_CALL)("x"))
    await clock.advance(10.0)
    assert call.result() == "ok"
    assert not caplog.records


class FatalError(BaseException):
    """No mere exception."""


@pytest.mark.parametrize("error", [KeyError("no words"), FatalError()])
async def test_what_reading_an_answer_raises_is_the_callers_alone(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(PlainCall):
        def judge(self, outcome: object) -> Verdict:
            raise error

    caplog.set_level("DEBUG", "shared.infrastructure.resilience.hedge")
    clock = FakeClock()
    layer = HedgeLayer(HedgeConfig(delay=1.0), clock=clock)
    call = asyncio.ensure_future(stack(ScriptedSend(["ok"]), layer, semantics=Broken())("x"))
    await clock.advance()
    assert call.done()
    assert call.exception() is error
    assert not caplog.records
    assert clock.pending == 0
