import asyncio
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.infrastructure.resilience import AllOf, RateLimiter, SlidingWindow, TokenBucket
from shared.infrastructure.resilience.errors import ConfigurationError, RateLimitExceededError
from shared.infrastructure.testing import FakeClock

KINDS = ("bucket", "window", "both")


def limiter(kind: str, clock: FakeClock) -> RateLimiter:
    bucket = TokenBucket(10.0, burst=10, clock=clock)
    window = SlidingWindow(10, 1.0, clock=clock)
    return {"bucket": bucket, "window": window, "both": AllOf(bucket, window)}[kind]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_estimated_too_high_lets_the_next_waiter_go_at_once(kind: str) -> None:
    clock = FakeClock()
    tokens = limiter(kind, clock)
    reservation = await tokens.reserve(10)
    heavy, light = (asyncio.create_task(tokens.reserve(cost)) for cost in (6, 1))
    await clock.advance(0.0)
    reservation.commit(4)
    await clock.advance(0.0)
    assert heavy.done()
    assert not light.done()
    reservation.cancel()  # settled already: changes nothing
    await clock.advance(0.0)
    assert not light.done()
    assert tokens.snapshot()["granted"] == 10
    await clock.advance(1.0)
    assert light.done()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_reservation_moves_the_whole_line_up(kind: str) -> None:
    clock = FakeClock()
    tokens = limiter(kind, clock)
    reservation = await tokens.reserve(10)
    waiters = [asyncio.create_task(tokens.reserve(5)) for _ in range(2)]
    await clock.advance(0.0)
    assert not any(waiter.done() for waiter in waiters)
    reservation.cancel()
    await clock.advance(0.0)
    assert all(waiter.done() for waiter in waiters)
    assert tokens.try_reserve(1) is None


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_estimated_too_low_is_a_debt_that_those_who_follow_wait_off(
    kind: str,
) -> None:
    clock = FakeClock()
    tokens = limiter(kind, clock)
    (await tokens.reserve(2)).commit(18)
    assert tokens.snapshot()["granted"] == 18
    assert tokens.utilization == 1.0
    with pytest.raises(RateLimitExceededError) as refused:
        await tokens.acquire(1, max_wait=0.5)
    assert refused.value.retry_after == pytest.approx(1.0 if kind == "window" else 0.9, abs=0.11)
    await clock.advance(1.01)
    assert tokens.try_acquire()


async def test_leaving_a_block_commits_the_estimate_unless_it_was_settled_inside() -> None:
    bucket = TokenBucket(10.0, burst=10, clock=FakeClock())
    with await bucket.reserve(4):
        pass
    assert bucket.snapshot()["granted"] == 4
    with await bucket.reserve(4) as reservation:
        reservation.commit(1)
        reservation.commit(3)
    assert bucket.snapshot()["granted"] == 5


async def test_a_block_left_by_an_error_or_a_cancellation_gives_everything_back() -> None:
    bucket = TokenBucket(10.0, burst=10, clock=FakeClock())
    with pytest.raises(KeyError), await bucket.reserve(10):
        raise KeyError
    assert bucket.utilization == 0.0

    async def hang() -> None:
        with await bucket.reserve(10):
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await asyncio.sleep(0)
    assert bucket.utilization == 1.0
    task.cancel()
    await asyncio.wait([task])
    assert bucket.utilization == 0.0


@pytest.mark.parametrize("actual", [-1.0, math.nan, math.inf])
def test_an_impossible_actual_cost_is_an_error_and_leaves_the_reservation_open(
    actual: float,
) -> None:
    bucket = TokenBucket(10.0, burst=10, clock=FakeClock())
    reservation = bucket.try_reserve(4)
    assert reservation is not None
    with pytest.raises(ConfigurationError):
        reservation.commit(actual)
    reservation.cancel()
    assert bucket.snapshot()["granted"] == 0


def test_an_impossible_estimate_is_a_configuration_error() -> None:
    for cost in (0.0, 11.0):
        with pytest.raises(ConfigurationError):
            TokenBucket(10.0, burst=10, clock=FakeClock()).try_reserve(cost)


async def test_a_window_never_gives_back_what_somebody_else_used_later() -> None:
    clock = FakeClock()
    window = SlidingWindow(10, 1.0, clock=clock)
    early = await window.reserve(5)
    await clock.advance(0.9)
    await window.acquire(5)
    early.cancel()
    assert window.try_acquire(5)
    await clock.advance(0.1)
    assert not window.try_acquire()


async def test_a_permit_that_left_the_window_is_worth_nothing_when_it_is_given_back() -> None:
    clock = FakeClock()
    window = SlidingWindow(10, 1.0, clock=clock)
    early = await window.reserve(5)
    await clock.advance(2.0)
    await window.acquire(10)
    early.cancel()
    assert not window.try_acquire()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS))
def test_permits_are_conserved_and_served_in_order_whatever_becomes_of_them(
    seed: int, kind: str
) -> None:
    rng = random.Random(seed)
    used: list[tuple[float, float]] = []
    ledger: list[tuple[float, float]] = []
    served: dict[int, float] = {}

    async def run() -> None:
        clock = FakeClock()
        tokens = limiter(kind, clock)

        async def caller(number: int) -> None:
            estimate = rng.randint(1, 10)
            with await tokens.reserve(estimate) as reservation:
                served[number] = at = clock.now()
                ledger.append((at, estimate))
                try:
                    await clock.sleep(rng.random() * 0.5)
                except asyncio.CancelledError:
                    ledger.append((clock.now(), -estimate))
                    raise
                actual = rng.choice([0.0, estimate / 2, float(estimate)])
                ledger.append((clock.now(), actual - estimate))
                used.append((at, actual))
                reservation.commit(actual)

        tasks: list[asyncio.Task[None]] = []
        for _ in range(25):
            for _ in range(rng.randrange(4)):
                tasks.append(asyncio.create_task(caller(len(tasks))))
            await clock.advance(rng.random() * 0.3)
            if tasks and rng.random() < 0.4:
                rng.choice(tasks).cancel()
        await clock.advance(120.0)
        assert all(task.done() for task in tasks)
        snapshot = tokens.snapshot()
        assert snapshot["granted"] == pytest.approx(sum(cost for _, cost in used))
        assert (snapshot["waiting"], snapshot["utilization"]) == (0, pytest.approx(0.0))
        assert clock.pending == 0
        assert tokens.try_acquire(10)

    asyncio.run(run())
    instants = [served[number] for number in sorted(served)]
    assert instants == sorted(instants)
    if kind == "bucket":
        assert_bounded(ledger, 10.0, 10.0)
    for start, _ in used if kind != "bucket" else ():
        assert sum(cost for at, cost in used if start <= at < start + 1.0 - 1e-6) <= 10 + 1e-6


def assert_bounded(ledger: list[tuple[float, float]], burst: float, rate: float) -> None:
    for index, (start, _) in enumerate(ledger):
        total = 0.0
        for at, cost in ledger[index:]:
            total += cost
            assert total <= burst + rate * (at - start) + 1e-6
