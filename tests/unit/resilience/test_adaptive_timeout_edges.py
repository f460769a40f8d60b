"""When the limit is derived anew, and what a cancelled attempt changes."""

import asyncio

import pytest

from shared.infrastructure.resilience import PLAIN_CALL, stack
from shared.infrastructure.resilience.adaptive_timeout import (
    AdaptiveTimeout,
    AdaptiveTimeoutConfig,
    AdaptiveTimeoutLayer,
)
from shared.infrastructure.testing import FakeClock

# One answer is enough to know half of them.
EAGER = AdaptiveTimeoutConfig(maximum=60.0, percentile=0.5, min_samples=1, window=200.0)


def test_the_limit_is_derived_anew_a_hundred_times_a_window() -> None:
    clock = FakeClock()
    timeout = AdaptiveTimeout(EAGER, clock=clock)
    timeout.record(0.2)
    before = timeout.limit()
    for _ in range(9):
        timeout.record(2.0)
    clock.stall(2.0 - 1 / 64)
    assert timeout.limit() == before == pytest.approx(0.4, rel=0.1)
    clock.stall(1 / 64)
    assert timeout.limit() == pytest.approx(4.0, rel=0.1)


def test_an_attempt_given_up_before_an_answer_was_seen_does_not_count() -> None:
    timeout = AdaptiveTimeout(EAGER, clock=FakeClock())
    timeout.abandon(5.0)
    assert timeout.snapshot() == {"limit": 60.0, "percentile": None, "expired_count": 0}


def test_an_attempt_given_up_at_the_very_percentile_does_not_count() -> None:
    clock = FakeClock()
    timeout = AdaptiveTimeout(EAGER, clock=clock)
    for seconds in (0.2, 0.2, 20.0, 20.0):
        timeout.record(seconds)
    timeout.abandon(timeout.snapshot()["percentile"])
    timeout.record(20.0)
    clock.stall(2.0)
    assert timeout.snapshot()["percentile"] == pytest.approx(20.0, rel=0.1)


async def test_a_cancelled_attempt_ends_cancelled() -> None:
    clock = FakeClock()

    async def hang(_request: str) -> None:
        await asyncio.get_running_loop().create_future()

    layer = AdaptiveTimeoutLayer(EAGER, clock=clock)
    call = asyncio.ensure_future(stack(hang, layer, semantics=PLAIN_CALL)("x"))
    await clock.advance(1.0)
    call.cancel()
    await clock.advance()
    assert call.cancelled()
    assert clock.pending == 0


def test_the_bounds_may_be_the_same() -> None:
    clock = FakeClock()
    timeout = AdaptiveTimeout(AdaptiveTimeoutConfig(maximum=5.0, minimum=5.0), clock=clock)
    assert timeout.limit() == 5.0
