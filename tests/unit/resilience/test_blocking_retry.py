import asyncio
import random
import threading
from contextvars import copy_context

import pytest

from shared.infrastructure.resilience import (
    BulkheadConfig,
    BulkheadFullError,
    ConfigurationError,
    DeadlineExceededError,
    RateLimitConfig,
    RateLimitExceededError,
    RetryBudgetConfig,
    RetryConfig,
    deadline,
    remaining_time,
)
from shared.infrastructure.resilience.blocking import BlockingGuard, blocking_deadline
from tests.unit.resilience.fake_threads import FakeThreads


class BusyError(Exception):
    def __init__(self, retry_after: float) -> None:
        super().__init__("busy")
        self.retry_after = retry_after


class Script:
    """A function that fails as often as it is told to, and notes when it was called."""

    def __init__(self, clock: FakeThreads, *errors: Exception) -> None:
        self.called_at: list[float] = []
        self._clock = clock
        self._errors = list(errors)

    def __call__(self) -> str:
        self.called_at.append(self._clock.now() - 1000.0)
        if self._errors:
            raise self._errors.pop(0)
        return "fine"


def test_a_failed_call_is_made_again_after_a_wait_that_grows() -> None:
    clock = FakeThreads()
    script = Script(clock, OSError("1"), OSError("2"), OSError("3"))
    guard = BlockingGuard(retry=RetryConfig(jitter=False), clock=clock)
    assert clock.run(guard.call, script) == "fine"
    assert script.called_at == [0.0, 1.0, 3.0, 7.0]


def test_the_jitter_is_drawn_after_the_cap() -> None:
    waits: set[float] = set()
    for seed in [*range(20), *range(20)]:
        clock = FakeThreads()
        script = Script(clock, OSError("down"))
        config = RetryConfig(base_delay=100.0, max_delay=5.0)
        guard = BlockingGuard(retry=config, clock=clock, rng=random.Random(seed))
        clock.run(guard.call, script)
        waits.add(script.called_at[1])
    assert len(waits) == 20
    assert 0.0 < min(waits) < max(waits) < 5.0


def test_the_last_error_stands_when_attempts_run_out() -> None:
    clock = FakeThreads()
    script = Script(clock, *(OSError(str(number)) for number in range(9)))
    guard = BlockingGuard(retry=RetryConfig(max_retries=2), clock=clock)
    with pytest.raises(OSError, match="2"):
        clock.run(guard.call, script)
    assert len(script.called_at) == 3


def test_no_attempt_comes_earlier_than_the_service_asked_for() -> None:
    clock = FakeThreads()
    script = Script(clock, BusyError(7.0))
    guard = BlockingGuard(retry=RetryConfig(base_delay=0.1), clock=clock)
    assert clock.run(guard.call, script) == "fine"
    assert script.called_at == [0.0, 7.0]


def test_a_wish_that_is_too_long_ends_the_call_at_once() -> None:
    clock = FakeThreads()
    guard = BlockingGuard(retry=RetryConfig(max_retry_after=5.0), clock=clock)
    with pytest.raises(BusyError):
        clock.start(guard.call, Script(clock, BusyError(6.0))).result(0)


def test_the_budget_is_shared_by_all_calls_of_a_guard() -> None:
    clock = FakeThreads()
    budget = RetryBudgetConfig(capacity=20.0, cost=10.0, min_retries_per_second=0.0)
    guard = BlockingGuard(retry=RetryConfig(base_delay=0.0), retry_budget=budget, clock=clock)
    script = Script(clock, *(OSError(str(number)) for number in range(9)))
    for _ in range(2):
        with pytest.raises(OSError, match=r"\d"):
            clock.run(guard.call, script)
    assert len(script.called_at) == 4
    assert guard.snapshot()["retry_budget"]["spent_count"] == 2


def test_an_interrupted_wait_for_the_next_attempt_costs_nothing() -> None:
    clock = FakeThreads()
    budget = RetryBudgetConfig(min_retries_per_second=0.0)
    guard = BlockingGuard(retry=RetryConfig(), retry_budget=budget, clock=clock)
    clock.interrupts.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        clock.run(guard.call, Script(clock, OSError("down")))
    assert guard.snapshot()["retry_budget"]["tokens"] == 100.0


def test_a_budget_without_retries_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match="retry"):
        BlockingGuard(retry_budget=RetryBudgetConfig())


def within(seconds: float, clock: FakeThreads, guard: BlockingGuard, script: Script) -> str:
    with blocking_deadline(seconds, clock=clock):
        return guard.call(script)


def test_a_retry_that_would_come_after_the_deadline_is_given_up_at_once() -> None:
    clock = FakeThreads()
    guard = BlockingGuard(retry=RetryConfig(jitter=False), clock=clock)
    script = Script(clock, OSError("1"), OSError("2"), OSError("3"))
    call = clock.start(within, 2.5, clock, guard, script)
    clock.advance(1.0)
    with pytest.raises(OSError, match="2"):
        call.result(0)
    assert script.called_at == [0.0, 1.0]


def test_a_permit_that_would_come_after_the_deadline_is_refused_at_once() -> None:
    clock = FakeThreads()
    limit = RateLimitConfig(requests_per_second=1.0, burst_size=1, max_wait=None)
    guard = BlockingGuard(rate_limit=limit, clock=clock)
    clock.run(guard.call, Script(clock))
    with pytest.raises(RateLimitExceededError):
        clock.start(within, 0.5, clock, guard, Script(clock)).result(0)
    assert clock.run(within, 1.5, clock, guard, Script(clock)) == "fine"


def test_no_line_is_longer_than_the_deadline() -> None:
    clock = FakeThreads()
    guard = BlockingGuard(bulkhead=BulkheadConfig(max_concurrent=1), clock=clock)
    clock.start(guard.call, clock.event().wait)
    call = clock.start(within, 3.0, clock, guard, Script(clock))
    clock.advance(3.0)
    assert isinstance(call.exception(0), BulkheadFullError)


def test_no_attempt_begins_after_the_deadline() -> None:
    clock = FakeThreads()
    guard = BlockingGuard(clock=clock)

    def late() -> None:
        with blocking_deadline(1.0, clock=clock):
            clock.event().wait(2.0)
            guard.call(pytest.fail)

    with pytest.raises(DeadlineExceededError):
        clock.run(late)


def test_a_nested_deadline_can_only_shorten_the_one_in_force() -> None:
    clock = FakeThreads()
    assert remaining_time() is None
    with blocking_deadline(5.0, clock=clock):
        with blocking_deadline(9.0, clock=clock):
            assert remaining_time() == 5.0
        with blocking_deadline(2.0, clock=clock):
            assert remaining_time() == 2.0
        assert remaining_time() == 5.0
    assert remaining_time() is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_deadline_is_a_finite_number_of_seconds(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="finite"):
        blocking_deadline(seconds)


def test_a_deadline_goes_along_with_its_context() -> None:
    found: list[float | None] = []
    with blocking_deadline(60.0):
        context = copy_context()
    thread = threading.Thread(target=context.run, args=(lambda: found.append(remaining_time()),))
    thread.start()
    thread.join()
    assert found[0] is not None


async def test_the_deadline_of_a_task_bounds_the_waits_of_its_threads() -> None:
    guard = BlockingGuard(retry=RetryConfig(base_delay=900.0, max_delay=900.0, jitter=False))
    attempts: list[int] = []

    def work() -> None:
        attempts.append(1)
        raise OSError("down")

    async with deadline(500.0):
        with pytest.raises(OSError, match="down"):
            await asyncio.to_thread(guard.call, work)
    assert len(attempts) == 1


class Leap:
    """A clock whose every wait is over at once, and the event of it."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def event(self) -> "Leap":
        return self

    def set(self) -> None:
        pytest.fail("nobody else is there")

    def clear(self) -> None:
        return None

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self._now += timeout
        return False


async def test_a_wait_that_holds_up_an_event_loop_is_warned_of() -> None:
    limit = RateLimitConfig(requests_per_second=1.0, burst_size=1)
    guard = BlockingGuard(rate_limit=limit, clock=Leap())
    guard.call(divmod, 1, 1)
    with pytest.warns(RuntimeWarning, match="asyncio"):
        guard.call(divmod, 1, 1)
