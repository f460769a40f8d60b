import asyncio
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.infrastructure.resilience import (
    AdaptiveRate,
    AdaptiveRateConfig,
    AllOf,
    BulkheadFullError,
    RateLimitExceededError,
    RateLimitLayer,
    SlidingWindow,
    TokenBucket,
    Verdict,
    stack,
)
from shared.infrastructure.resilience.layer import PlainCall
from shared.infrastructure.testing import FakeClock

OK, BUSY = Verdict.OK, Verdict.BUSY


class Answers(PlainCall):
    """Semantics of a service whose answers, or errors, are verdicts with a wait."""

    def judge(self, outcome: object) -> Verdict:
        return BUSY if "busy" in str(outcome) else super().judge(outcome)

    def retry_after(self, outcome: object) -> float | None:
        return 3.0 if "3 s" in str(outcome) else None


def limited(clock: FakeClock, rate: float = 10.0, burst: int = 1) -> AdaptiveRate:
    """Return a limiter that begins at `rate`."""
    return AdaptiveRate(AdaptiveRateConfig(initial_rate=rate, burst_size=burst), clock=clock)


async def busy_line(clock: FakeClock, limiter: AdaptiveRate, seconds: float) -> int:
    """Let a line that never ends take permits, each a success; return how many went."""
    granted = 0

    async def caller() -> None:
        nonlocal granted
        while True:
            await limiter.acquire()
            granted += 1
            limiter.record(OK)

    tasks = [asyncio.create_task(caller()) for _ in range(3)]
    await clock.advance(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return granted


def test_it_follows_the_published_figures_of_the_aws_sdks() -> None:
    # From "retry behavior" of the AWS SDK reference: seconds, refused, measured rate, new rate.
    clock = FakeClock(0.0)
    limiter = AdaptiveRate(clock=clock)
    for at in (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8):
        clock._now = at
        assert limiter.try_acquire()
        limiter.record(OK)
    for at, verdict, measured, rate in (
        (2.0, BUSY, 4.326400, 3.028480),
        (2.2, OK, 4.326400, 3.486639),
        (2.4, OK, 4.326400, 3.821874),
        (2.6, OK, 5.665280, 4.053386),
        (2.8, OK, 5.665280, 4.200373),
        (3.0, OK, 4.333056, 4.282037),
        (3.2, BUSY, 4.333056, 2.997426),
        (3.4, OK, 4.333056, 3.452226),
    ):
        clock._now = at
        limiter.charge(1.0, at)
        limiter.record(verdict)
        snapshot = limiter.snapshot()
        assert snapshot["measured_rate"] == pytest.approx(measured)
        assert snapshot["rate"] == pytest.approx(rate, abs=1e-6)


def test_it_is_unlimited_until_the_service_first_asks_for_patience() -> None:
    clock = FakeClock()
    limiter = AdaptiveRate(clock=clock)
    limiter.pause(2.0)
    assert not limiter.try_acquire()
    clock._now += 2.0
    assert all(limiter.try_acquire() for _ in range(1000))
    limiter.record(OK)
    assert (limiter.snapshot()["rate"], limiter.utilization) == (None, 0.0)
    limiter.refund()
    limiter.record(BUSY)
    assert limiter.snapshot()["rate"] == pytest.approx(0.7 * 998 * 2)
    assert not limiter.try_acquire()
    assert limiter.snapshot()["throttled_count"] == 1
    assert limiter.utilization == 1.0


def test_a_hundred_refusals_of_one_flight_count_once_and_those_of_the_next_again() -> None:
    clock = FakeClock()
    limiter = limited(clock, rate=100.0, burst=100)
    clock._now += 1.0
    assert limiter.try_acquire(100)
    granted_at = limiter.last_granted_at
    clock._now += 0.5
    for _ in range(100):
        limiter.record(BUSY, granted_at=granted_at)
        clock._now += 0.001
    first = limiter.rate
    assert first == pytest.approx(0.7 * 0.8 * 100)
    limiter.record(BUSY, granted_at=clock.now())
    assert limiter.rate < 0.75 * first
    assert limiter.snapshot()["throttled_count"] == 101


async def test_failures_and_void_outcomes_neither_slow_it_down_nor_speed_it_up() -> None:
    clock = FakeClock()
    limiter = limited(clock)
    await busy_line(clock, limiter, 3.0)
    limiter.record(BUSY)
    rate = limiter.rate
    await clock.advance(3.0)
    for verdict in (Verdict.FAILED, Verdict.VOID):
        limiter.record(verdict)
    assert limiter.rate == rate
    limiter.record(OK)
    assert limiter.rate > rate


async def test_growth_is_at_most_twice_what_really_goes() -> None:
    clock = FakeClock()
    limiter = limited(clock)
    limiter.record(BUSY)
    for _ in range(30):
        await clock.advance(2.0)
        await limiter.acquire()
        limiter.record(OK)
    assert limiter.rate == pytest.approx(1.0, rel=0.01)


async def test_the_initial_rate_is_not_lowered_by_quiet_times_and_grows_with_demand() -> None:
    clock = FakeClock()
    limiter = limited(clock)
    for _ in range(10):
        await clock.advance(2.0)
        await limiter.acquire()
        limiter.record(OK)
    assert limiter.rate == 10.0
    assert await busy_line(clock, limiter, 6.0) > 100
    assert limiter.rate > 20.0


async def test_a_pause_is_no_time_to_grow_in() -> None:
    clock = FakeClock()
    limiter = limited(clock)
    assert await busy_line(clock, limiter, 3.0) >= 30
    limiter.record(BUSY)
    fallen = limiter.rate
    limiter.pause(30.0)
    limiter.pause(60.0)
    for _ in range(2):
        await clock.advance(30.0)
        limiter.record(OK)
        assert limiter.rate == pytest.approx(fallen)
    await clock.advance(3.0)
    limiter.record(OK)
    too_fast = fallen / 0.7
    way_back = (0.3 * too_fast / 0.4) ** (1 / 3)
    assert limiter.rate == pytest.approx(0.4 * (3.0 - way_back) ** 3 + too_fast)


async def test_after_a_pause_nobody_bursts_even_if_the_rate_fell_meanwhile() -> None:
    clock = FakeClock()
    limiter = limited(clock, burst=10)
    await busy_line(clock, limiter, 3.0)
    limiter.pause(4.0)
    await clock.advance(1.0)
    limiter.record(BUSY)
    with pytest.raises(RateLimitExceededError) as refused:
        await limiter.acquire(max_wait=3.0)
    assert refused.value.retry_after == pytest.approx(3.0 + 1 / limiter.rate)
    assert not limiter.try_acquire()
    rate = limiter.rate
    await clock.advance(3.0)
    limiter.record(OK)
    assert limiter.rate == pytest.approx(rate)
    await clock.advance(1.01 / rate)
    assert (limiter.try_acquire(), limiter.try_acquire()) == (True, False)


async def test_nobody_barges_past_a_line() -> None:
    clock = FakeClock()
    limiter = limited(clock)
    assert limiter.try_acquire()
    waiter = asyncio.create_task(limiter.acquire())
    await clock.advance(0.0)
    clock._now += 60.0
    assert not limiter.try_acquire()
    await clock.advance(0.0)
    assert waiter.done()


def test_a_debt_outlives_a_fall_and_permits_given_back_late_measure_as_nothing() -> None:
    clock = FakeClock()
    limiter = limited(clock)
    reservation = limiter.try_reserve(1.0)
    assert reservation is not None
    reservation.commit(51.0)
    limiter.record(BUSY)
    assert limiter.delay(1.0, clock.now()) == pytest.approx(51.0 / limiter.rate)
    clock._now += 0.6
    limiter.charge(1.0, clock.now())
    limiter.refund(50.0)
    for number in range(8):
        clock._now += 0.6
        limiter.charge(1.0, clock.now())
        assert limiter.snapshot()["measured_rate"] >= (0.8 if number else 0.0)


@pytest.mark.parametrize("burst", [1, 30])
async def test_a_success_that_moves_the_rate_loses_no_permit_and_invents_none(burst: int) -> None:
    clock = FakeClock()
    config = AdaptiveRateConfig(initial_rate=10.0, max_rate=10.0, burst_size=burst)
    limiter = AdaptiveRate(config, clock=clock)
    granted = await busy_line(clock, limiter, 20.0)
    assert granted == pytest.approx(burst + 200, abs=1.0)


async def test_the_line_speeds_up_when_the_rate_grows_and_keeps_its_order() -> None:
    clock = FakeClock()
    limiter = limited(clock, rate=0.5)
    assert limiter.try_acquire()
    served: list[int] = []

    async def wait(number: int) -> None:
        await limiter.acquire()
        served.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(3)]
    await clock.advance(0.6)
    limiter._meter.add(100, clock.now())
    clock._now += 1.0
    limiter.record(OK)
    assert limiter.rate > 0.8
    await clock.advance(0.2)
    assert served == [0]
    await clock.advance(10.0)
    assert served == [0, 1, 2]
    assert all(task.done() for task in tasks)


async def test_a_wait_longer_than_allowed_is_refused_at_once() -> None:
    clock = FakeClock()
    limiter = limited(clock, rate=0.5)
    assert limiter.try_acquire()
    with pytest.raises(RateLimitExceededError) as refused:
        await limiter.acquire(max_wait=1.0)
    assert refused.value.retry_after == pytest.approx(2.0)


def test_permits_given_back_after_a_fall_are_no_burst() -> None:
    clock = FakeClock()
    limiter = limited(clock, burst=10)
    reservations = [limiter.try_reserve(1.0) for _ in range(10)]
    clock._now += 0.1
    limiter.record(BUSY)
    for reservation in reservations:
        assert reservation is not None
        reservation.cancel()
    assert not limiter.try_acquire()


STEPS = st.tuples(
    st.sampled_from([0.0, 0.001, 0.1, 0.5, 3.0]),
    st.sampled_from([*Verdict]),
    st.integers(0, 60),
    st.booleans(),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(steps=st.lists(STEPS, min_size=5, max_size=60), burst=st.sampled_from([1, 7]))
def test_no_span_sees_more_than_the_highest_rate_allows_and_the_rate_keeps_its_bounds(
    steps: list[tuple[float, Verdict, int, bool]], burst: int
) -> None:
    clock = FakeClock()
    config = AdaptiveRateConfig(min_rate=2.0, max_rate=50.0, burst_size=burst)
    limiter = config.build(clock=clock)
    granted: list[float] = []
    for gap, verdict, wanted, paused in steps:
        clock._now += gap
        granted += [clock.now() for _ in range(wanted) if limiter.try_acquire()]
        limiter.record(verdict)
        if paused:
            limiter.pause(0.3)
        assert 2.0 <= limiter.rate <= 50.0
        assert 0.0 <= limiter.utilization <= 1.0
    for first, last in itertools.combinations_with_replacement(range(len(granted)), 2):
        span = granted[last] - granted[first]
        assert last - first + 1 <= limiter.most_within(span) + 1e-6
    assert limiter.most_within(2.0) == max(5, burst) + 100.0


async def test_the_layer_tells_it_of_successes_and_of_refusals_be_they_answers_or_errors() -> None:
    clock = FakeClock()
    limiter = limited(clock, rate=2.0)
    outcomes: list[str | Exception] = ["well"]

    async def answer(_request: str) -> str:
        outcome = outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    send = stack(answer, RateLimitLayer(limiter), semantics=Answers())
    for _ in range(20):
        await asyncio.gather(send("x"), clock.advance(0.5))
    grown = limiter.rate
    assert grown == pytest.approx(4.0, rel=0.01)
    outcomes[0] = "busy"
    await send("x")
    fallen = limiter.rate
    assert fallen < grown
    outcomes[0] = ValueError("busy, come back in 3 s")
    await clock.advance(2.0)
    with pytest.raises(ValueError, match="busy"):
        await send("x")
    assert limiter.rate < fallen
    assert limiter.snapshot()["paused_for"] == 3.0
    outcomes[0] = BulkheadFullError("full")
    await clock.advance(5.0)
    with pytest.raises(BulkheadFullError):
        await send("x")
    assert limiter.snapshot()["throttled_count"] == 2


async def test_in_company_it_learns_and_limits_without_company_nobody_is_told() -> None:
    clock = FakeClock()
    limiter, daily = limited(clock, burst=5), SlidingWindow(1000, 86400.0, clock=clock)
    both = AllOf(limiter, daily)
    assert both.adapts
    assert not AllOf(daily, TokenBucket(1.0, clock=clock)).adapts
    assert both.try_acquire()
    both.record(BUSY, granted_at=both.last_granted_at)
    assert limiter.rate < 10.0
    assert not both.try_acquire()


@pytest.mark.parametrize(
    ("capacity", "seconds"), [(lambda _: 50.0, 60), (lambda at: 50.0 if at < 30 else 10.0, 60)]
)
async def test_it_finds_the_rate_of_a_service_and_is_refused_little(
    capacity: Callable[[float], float], seconds: int
) -> None:
    clock = FakeClock(0.0)
    limiter = AdaptiveRate(clock=clock)
    counts = {"well": 0, "busy": 0}
    tokens, filled_at = 5.0, 0.0

    async def serve(_request: str) -> str:
        nonlocal tokens, filled_at
        now = clock.now()
        tokens = min(5.0, tokens + (now - filled_at) * capacity(now))
        filled_at = now
        answer = "well" if tokens >= 1.0 else "busy"
        tokens -= answer == "well"
        await clock.sleep(0.1)
        counts[answer] += now >= seconds - 25
        return answer

    send = stack(serve, RateLimitLayer(limiter), semantics=Answers())

    async def caller() -> None:
        while True:
            await send("x")

    tasks = [asyncio.create_task(caller()) for _ in range(20)]
    await clock.advance(float(seconds))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert counts["well"] > 0.85 * 25 * capacity(seconds)
    assert counts["busy"] < 0.1 * counts["well"]


def test_the_config_says_what_it_does_not_accept() -> None:
    for bad in ({"initial_rate": 0.1}, {"initial_rate": 9.0, "max_rate": 8.0}, {"max_rate": 0.1}):
        with pytest.raises(ValidationError, match="min_rate"):
            AdaptiveRateConfig(**bad)
    assert AdaptiveRateConfig(max_rate=8.0).build().rate == 8.0
    assert AdaptiveRateConfig(max_rate=8.0, initial_rate=4.0).build().rate == 4.0
