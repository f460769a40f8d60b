"""Token limits that processes share: what one limit gave goes back if another refuses."""

import asyncio

import pytest

from shared.infrastructure.balancing.accounting import Estimate, SharedTokenLimits
from shared.infrastructure.balancing.errors import TokenLimitError
from shared.infrastructure.resilience import TokenBucket
from shared.infrastructure.testing import FakeClock


def shared(clock: FakeClock) -> tuple[SharedTokenLimits, TokenBucket, TokenBucket]:
    requests, tokens = TokenBucket(1.0, 60, clock=clock), TokenBucket(10.0, 600, clock=clock)
    limits = SharedTokenLimits({"requests": requests, "tokens": tokens}, clock=clock)
    return limits, requests, tokens


def used(bucket: TokenBucket) -> float:
    return round(bucket.utilization * bucket.capacity, 6)


async def test_a_call_takes_from_every_limit_and_settles_with_each() -> None:
    limits, requests, tokens = shared(FakeClock())
    reservation = await limits.reserve(Estimate(100, 200))
    assert (used(requests), used(tokens)) == (1.0, 300.0)
    reservation.settle(100, 20)
    reservation.cancel()
    assert (used(requests), used(tokens)) == (1.0, 120.0)
    (await limits.reserve(Estimate(100, 200))).cancel()
    assert (used(requests), used(tokens)) == (1.0, 120.0)


async def test_a_call_that_one_limit_refuses_gives_back_what_the_others_gave() -> None:
    limits, requests, tokens = shared(FakeClock())
    await limits.reserve(Estimate(500, 100))
    with pytest.raises(TokenLimitError) as refused:
        await limits.reserve(Estimate(50, 50), max_wait=5.0)
    assert refused.value.retry_after == pytest.approx(10.0)
    assert (used(requests), used(tokens)) == (1.0, 600.0)


async def test_a_call_that_is_cancelled_in_line_gives_back_what_it_had() -> None:
    clock = FakeClock()
    limits, requests, tokens = shared(clock)
    await limits.reserve(Estimate(500, 100))
    waiting = asyncio.ensure_future(limits.reserve(Estimate(50, 50)))
    await clock.advance(1.0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert used(requests) == 0.0
    assert used(tokens) == 590.0


async def test_a_call_larger_than_a_limit_takes_all_of_it_and_owes_the_rest() -> None:
    limits, _, tokens = shared(FakeClock())
    reservation = await limits.reserve(Estimate(900, 300))
    assert used(tokens) == 600.0
    reservation.settle(900, 300)
    assert tokens.delay(10.0, tokens.clock.now()) == pytest.approx(61.0)


async def test_what_a_host_counts_is_owed_to_a_bound() -> None:
    limits, _, tokens = shared(FakeClock())
    reservation = await limits.reserve(Estimate(1, 1))
    reservation.settle(10**15, 10**15)
    assert tokens.delay(10.0, tokens.clock.now()) <= 5 * 60.0


async def test_nothing_is_taken_from_a_limit_that_a_call_does_not_touch() -> None:
    clock = FakeClock()
    written = TokenBucket(1.0, 60, clock=clock)
    limits = SharedTokenLimits({"output-tokens": written}, clock=clock)
    await limits.reserve(Estimate(900, 0))
    assert used(written) == 0.0
