"""Bounds hold however threads interleave: eight of them, switched as often as they can be."""

import itertools
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from shared.infrastructure.resilience import (
    BulkheadConfig,
    CallRefusedError,
    CircuitBreakerConfig,
    HealthConfig,
    RateLimitConfig,
    RateLimitExceededError,
    RetryBudgetConfig,
    RetryConfig,
)
from shared.infrastructure.resilience.blocking import (
    BlockingGuard,
    BlockingSingleFlight,
    ThreadClock,
)

THREADS = 8
CALLS = 300


@pytest.fixture(autouse=True)
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class StandingClock(ThreadClock):
    """Real waits, but a time that moves only by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1000.0
        self.now = lambda: self.time


class Gauge:
    """Counts how many threads are inside at the same time."""

    def __init__(self) -> None:
        self.most = self.calls = 0
        self._inside = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.calls += 1
            self._inside += 1
            self.most = max(self.most, self._inside)
        time.sleep(0)
        with self._lock:
            self._inside -= 1


def hammer(work: Callable[[], object], calls: int = CALLS) -> Counter[str]:
    """Let all threads call `work` again and again; return how the calls ended."""
    ends: list[str] = []
    begin = threading.Barrier(THREADS)

    def run() -> None:
        begin.wait()
        for _ in range(calls):
            try:
                work()
            except BaseException as exc:
                ends.append(type(exc).__name__)
            else:
                ends.append("ok")

    threads = [threading.Thread(target=run, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive()
    return Counter(ends)


def test_no_more_calls_are_in_flight_than_there_are_slots_and_none_is_lost() -> None:
    guard = BlockingGuard(bulkhead=BulkheadConfig(max_concurrent=3))
    gauge = Gauge()
    assert hammer(lambda: guard.call(gauge)) == {"ok": THREADS * CALLS}
    assert gauge.most <= 3
    assert guard.snapshot()["bulkhead"] == {
        "enabled": True,
        "in_flight": 0,
        "max_concurrent": 3,
        "waiting": 0,
        "refused_count": 0,
    }


@pytest.mark.parametrize("strategy", ["token_bucket", "sliding_window"])
def test_a_window_sees_as_many_permits_as_it_may_and_not_one_more(strategy: str) -> None:
    clock = StandingClock()
    config = RateLimitConfig.model_validate(
        {"requests_per_second": 100.0, "burst_size": 100, "strategy": strategy, "max_wait": 0.0}
    )
    guard = BlockingGuard(rate_limit=config, clock=clock)
    gauge = Gauge()
    for _ in range(3):
        ends = hammer(lambda: guard.call(gauge), calls=50)
        assert ends == {"ok": 100, RateLimitExceededError.__name__: THREADS * 50 - 100}
        clock.time += 1.0
    assert gauge.calls == 300


def test_waiting_threads_get_every_permit_there_is() -> None:
    config = RateLimitConfig(requests_per_second=20_000.0, burst_size=1)
    guard = BlockingGuard(rate_limit=config)
    assert hammer(lambda: guard.call(int), calls=50) == {"ok": THREADS * 50}
    assert guard.snapshot()["rate_limiter"]["granted"] == THREADS * 50


def test_a_circuit_that_is_half_open_sees_no_more_probes_than_it_may() -> None:
    clock = StandingClock()
    breaker = CircuitBreakerConfig(
        failure_threshold=1, timeout=1.0, half_open_max_calls=2, success_threshold=1000
    )
    guard = BlockingGuard(circuit_breaker=breaker, clock=clock)
    with pytest.raises(ZeroDivisionError):
        guard.call(divmod, 1, 0)
    clock.time += 1.0
    gauge = Gauge()
    ends = hammer(lambda: guard.call(gauge), calls=100)
    assert gauge.most <= 2
    status = guard.snapshot()["circuit_breaker"]
    assert status["probe_successes"] == ends["ok"] == gauge.calls
    assert status["refused_count"] == ends["CircuitOpenError"]
    assert status["probes_in_flight"] == 0


def test_every_outcome_is_counted_once() -> None:
    breaker = CircuitBreakerConfig(failure_threshold=10**9, failure_rate=None)
    guard = BlockingGuard(circuit_breaker=breaker, health=HealthConfig(), clock=StandingClock())
    numbers = itertools.count()

    def work() -> None:
        if next(numbers) % 3 == 0:
            raise OSError

    ends = hammer(lambda: guard.call(work))
    status = guard.snapshot()
    assert status["circuit_breaker"]["window_calls"] == THREADS * CALLS
    assert status["circuit_breaker"]["window_failures"] == ends["OSError"] == THREADS * CALLS / 3


def test_all_threads_together_retry_no_more_than_the_budget_pays_for() -> None:
    budget = RetryBudgetConfig(
        capacity=1000.0, cost=10.0, success_refund=0.0, min_retries_per_second=0.0
    )
    guard = BlockingGuard(
        retry=RetryConfig(max_retries=1, base_delay=0.0),
        retry_budget=budget,
        clock=StandingClock(),
    )
    numbers = itertools.count()

    def work() -> None:
        next(numbers)
        raise OSError

    assert hammer(lambda: guard.call(work), calls=100) == {"OSError": THREADS * 100}
    assert next(numbers) == THREADS * 100 + 100
    assert guard.snapshot()["retry_budget"]["tokens"] == 0.0


def test_nothing_leaks_whatever_the_calls_end_with() -> None:
    guard = BlockingGuard(
        circuit_breaker=CircuitBreakerConfig(failure_threshold=4, timeout=1e-4, max_timeout=1e-4),
        rate_limit=RateLimitConfig(requests_per_second=1e5, burst_size=10),
        bulkhead=BulkheadConfig(max_concurrent=3, max_queue=3, max_wait=1e-3),
        retry=RetryConfig(max_retries=1, base_delay=0.0),
        retry_budget=RetryBudgetConfig(),
    )
    rng = random.Random(1)

    def work() -> None:
        chance = rng.random()
        if chance < 0.1:
            raise SystemExit
        if chance < 0.3:
            raise OSError

    ends = hammer(lambda: guard.call(work))
    refusals = {kind.__name__ for kind in CallRefusedError.__subclasses__()}
    assert set(ends) <= {"ok", "SystemExit", "OSError", *refusals}
    status = guard.snapshot()
    assert status["bulkhead"]["in_flight"] == status["bulkhead"]["waiting"] == 0
    assert status["rate_limiter"]["waiting"] == 0
    assert status["circuit_breaker"]["probes_in_flight"] == 0


def test_a_key_is_never_computed_twice_at_the_same_time() -> None:
    flights = BlockingSingleFlight[str, None]()
    gauge = Gauge()
    assert hammer(lambda: flights.do("key", gauge)) == {"ok": THREADS * CALLS}
    assert gauge.most == 1
    assert len(flights) == 0


def test_nobody_is_forgotten_by_a_computation_that_ends_as_soon_as_it_begins() -> None:
    flights = BlockingSingleFlight[str, int]()
    assert hammer(lambda: flights.do("key", int), calls=2000) == {"ok": THREADS * 2000}


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_control_c_ends_the_wait_of_the_main_thread() -> None:
    guard = BlockingGuard(bulkhead=BulkheadConfig(max_concurrent=1))
    holds, done = threading.Event(), threading.Event()

    def hold() -> None:
        with guard.attempt():
            holds.set()
            while not guard.snapshot()["bulkhead"]["waiting"]:
                time.sleep(0)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            done.wait()

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    holds.wait()
    with pytest.raises(KeyboardInterrupt):
        guard.call(pytest.fail)
    assert guard.snapshot()["bulkhead"]["waiting"] == 0
    done.set()
    holder.join()
    assert guard.snapshot()["bulkhead"]["in_flight"] == 0
