import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from shared.infrastructure.resilience import (
    BulkheadConfig,
    BulkheadFullError,
    CircuitBreakerConfig,
    CircuitOpenError,
    ConfigurationError,
    HealthConfig,
    RateLimitConfig,
    RateLimitExceededError,
    RetryConfig,
    Verdict,
)
from shared.infrastructure.resilience.blocking import BlockingGuard
from shared.infrastructure.resilience.events import Event, Listeners
from tests.unit.resilience.fake_threads import FakeEvent, FakeThreads

SLOW = RateLimitConfig(requests_per_second=1.0, burst_size=1, max_wait=None)


def part(guard: BlockingGuard, name: str, key: str) -> object:
    return guard.snapshot()[name][key]


def fail(error: BaseException) -> None:
    raise error


def blocked(clock: FakeThreads, guard: BlockingGuard) -> tuple[FakeEvent, Future[bool]]:
    """Let a thread hold what a call holds until the event is set."""
    gate = clock.event()
    return gate, clock.start(guard.call, gate.wait)


def test_threads_get_their_permits_in_order_of_arrival_and_on_time() -> None:
    clock = FakeThreads()
    guard = BlockingGuard(rate_limit=SLOW, clock=clock)
    began: list[tuple[str, float]] = []
    for name in "abcd":
        clock.start(guard.call, lambda name=name: began.append((name, clock.now())))
    assert began == [("a", 1000.0)]
    assert part(guard, "rate_limiter", "waiting") == 3
    clock.advance(10.0)
    assert [name for name, _ in began] == list("abcd")
    assert [at for _, at in began] == pytest.approx([1000.0, 1001.0, 1002.0, 1003.0])


def test_nobody_overtakes_a_thread_that_waits() -> None:
    clock = FakeThreads()
    guard = BlockingGuard(rate_limit=SLOW, clock=clock)
    order: list[str] = []
    for name in "ab":
        clock.start(guard.call, order.append, name)
    # The permit of b is there, but b has not been told yet.
    clock._now += 1.5
    clock.start(guard.call, order.append, "c")
    clock.advance(5.0)
    assert order == ["a", "b", "c"]


def test_a_permit_that_would_come_too_late_is_refused_at_once() -> None:
    clock = FakeThreads()
    config = RateLimitConfig(requests_per_second=1.0, burst_size=1, max_wait=2.0)
    guard = BlockingGuard(rate_limit=config, clock=clock)
    calls = [clock.start(guard.call, lambda: "sent") for _ in range(4)]
    with pytest.raises(RateLimitExceededError) as refused:
        calls[3].result(0)
    assert refused.value.retry_after == pytest.approx(3.0)
    assert part(guard, "rate_limiter", "refused_count") == 1
    clock.advance(2.0)
    assert [call.result(0) for call in calls[:3]] == ["sent"] * 3


def test_a_slot_goes_to_the_thread_that_waits_longest() -> None:
    clock = FakeThreads()
    guard = BlockingGuard(bulkhead=BulkheadConfig(max_concurrent=2), clock=clock)
    calls = [blocked(clock, guard) for _ in range(5)]
    assert [gate.waiting for gate, _ in calls] == [True, True, False, False, False]
    calls[1][0].set()
    clock.advance(0.0)
    assert [gate.waiting for gate, _ in calls] == [True, False, True, False, False]
    for gate, _ in calls:
        gate.set()
        clock.advance(0.0)
    assert [call.result(0) for _, call in calls] == [True] * 5
    assert part(guard, "bulkhead", "in_flight") == 0


def test_a_full_line_and_a_long_wait_for_a_slot_are_refused() -> None:
    clock = FakeThreads()
    config = BulkheadConfig(max_concurrent=1, max_queue=1, max_wait=2.0)
    guard = BlockingGuard(bulkhead=config, clock=clock)
    gate, _ = blocked(clock, guard)
    waiting = clock.start(guard.call, lambda: "never")
    with pytest.raises(BulkheadFullError):
        clock.run(guard.call, lambda: "never")
    clock.advance(1.9)
    assert not waiting.done()
    clock.advance(0.2)
    with pytest.raises(BulkheadFullError):
        waiting.result(0)
    gate.set()
    clock.advance(0.0)
    assert clock.run(guard.call, lambda: "sent") == "sent"


def test_those_behind_a_thread_that_gave_up_move_up() -> None:
    clock = FakeThreads()
    config = BulkheadConfig(max_concurrent=1, max_wait=2.0)
    guard = BlockingGuard(bulkhead=config, clock=clock)
    gate, _ = blocked(clock, guard)
    first = clock.start(guard.call, lambda: "first")
    clock.advance(1.0)
    second = clock.start(guard.call, lambda: "second")
    clock.advance(1.5)
    assert isinstance(first.exception(0), BulkheadFullError)
    gate.set()
    clock.advance(0.0)
    assert second.result(0) == "second"


def test_one_thread_of_many_probes_a_circuit_that_is_half_open() -> None:
    clock = FakeThreads()
    breaker = CircuitBreakerConfig(failure_threshold=1, timeout=10.0, success_threshold=1)
    guard = BlockingGuard("db", circuit_breaker=breaker, rate_limit=SLOW, clock=clock)
    with pytest.raises(ZeroDivisionError):
        clock.run(guard.call, divmod, 1, 0)
    with pytest.raises(CircuitOpenError):
        clock.run(guard.call, divmod, 1, 1)
    assert part(guard, "rate_limiter", "granted") == 1
    clock.advance(10.0)
    gate, probe = blocked(clock, guard)
    with pytest.raises(CircuitOpenError):
        clock.run(guard.call, divmod, 1, 1)
    gate.set()
    clock.advance(0.0)
    assert probe.result(0)
    assert part(guard, "circuit_breaker", "state") == "closed"


def test_nobody_waits_behind_an_open_circuit() -> None:
    clock = FakeThreads()
    guard = BlockingGuard(
        circuit_breaker=CircuitBreakerConfig(failure_threshold=1), rate_limit=SLOW, clock=clock
    )
    with pytest.raises(OSError, match="down"):
        clock.run(guard.call, fail, OSError("down"))
    with pytest.raises(CircuitOpenError):
        clock.start(guard.call, divmod, 1, 1).result(0)


def test_the_refusal_of_an_inner_guard_is_no_failure_whatever_judge_says() -> None:
    inner = BlockingGuard(bulkhead=BulkheadConfig(max_concurrent=1, max_queue=0))
    outer = BlockingGuard(
        circuit_breaker=CircuitBreakerConfig(failure_threshold=1),
        judge=lambda _outcome: Verdict.FAILED,
    )
    with inner.attempt(), pytest.raises(BulkheadFullError):
        outer.call(inner.call, divmod, 1, 1)
    assert part(outer, "circuit_breaker", "window_calls") == 0


def test_a_permit_taken_for_a_call_that_is_then_refused_goes_back() -> None:
    clock = FakeThreads()
    config = BulkheadConfig(max_concurrent=1, max_queue=0)
    limit = RateLimitConfig(requests_per_second=1.0, burst_size=2)
    guard = BlockingGuard(rate_limit=limit, bulkhead=config, clock=clock)
    blocked(clock, guard)
    for _ in range(5):
        with pytest.raises(BulkheadFullError):
            clock.run(guard.call, divmod, 1, 1)
    assert part(guard, "rate_limiter", "granted") == 1


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupted_call_gives_everything_back_and_counts_for_nothing(
    interrupt: type[BaseException],
) -> None:
    clock = FakeThreads()
    guard = BlockingGuard(
        circuit_breaker=CircuitBreakerConfig(failure_threshold=1),
        bulkhead=BulkheadConfig(max_concurrent=1),
        retry=RetryConfig(),
        health=HealthConfig(),
        judge=lambda _outcome: Verdict.FAILED,
        clock=clock,
    )
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise interrupt

    with pytest.raises(interrupt):
        clock.run(guard.call, work)
    assert len(calls) == 1
    assert part(guard, "bulkhead", "in_flight") == 0
    assert part(guard, "circuit_breaker", "window_calls") == 0
    assert part(guard, "circuit_breaker", "state") == "closed"
    assert part(guard, "health", "checks") == 0


def test_an_interrupted_probe_gives_its_place_to_the_next() -> None:
    clock = FakeThreads()
    config = CircuitBreakerConfig(failure_threshold=1, timeout=1.0, success_threshold=1)
    guard = BlockingGuard(circuit_breaker=config, clock=clock)
    with pytest.raises(OSError, match="down"):
        clock.run(guard.call, fail, OSError("down"))
    clock.advance(1.0)
    with pytest.raises(KeyboardInterrupt):
        clock.run(guard.call, fail, KeyboardInterrupt())
    assert clock.run(guard.call, divmod, 7, 2) == (3, 1)


@pytest.mark.parametrize("which", ["rate_limiter", "bulkhead"])
def test_an_interrupted_wait_gives_up_its_place_in_line(which: str) -> None:
    clock = FakeThreads()
    guard = BlockingGuard(
        rate_limit=SLOW if which == "rate_limiter" else None,
        bulkhead=BulkheadConfig(max_concurrent=1) if which == "bulkhead" else None,
        clock=clock,
    )
    gate, _ = blocked(clock, guard)
    clock.interrupts.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        clock.run(guard.call, divmod, 1, 1)
    assert part(guard, which, "waiting") == 0
    behind = clock.start(guard.call, divmod, 1, 1)
    gate.set()
    clock.advance(1.0)
    assert behind.result(0) == (1, 0)


def test_an_interrupt_between_two_steps_of_the_layers_leaks_no_slot() -> None:
    clock = FakeThreads()
    guard = BlockingGuard(bulkhead=BulkheadConfig(max_concurrent=1), clock=clock)

    class Lock:
        """Lets a signal in when the call is over, before the layers hear of it."""

        def __init__(self) -> None:
            self.entered = 0

        def __enter__(self) -> None:
            self.entered += 1
            if self.entered == 2:
                raise KeyboardInterrupt

        def __exit__(self, *_: object) -> None:
            return None

    lock = guard.lock
    setattr(guard, "lock", Lock())  # noqa: B010 - of another type, on purpose
    with pytest.raises(KeyboardInterrupt):
        clock.run(guard.call, divmod, 1, 1)
    guard.lock = lock
    assert part(guard, "bulkhead", "in_flight") == 0


def test_a_with_block_is_one_attempt() -> None:
    guard = BlockingGuard(
        circuit_breaker=CircuitBreakerConfig(failure_threshold=2),
        bulkhead=BulkheadConfig(max_concurrent=1, max_queue=0),
        retry=RetryConfig(),
    )
    with guard.attempt():
        assert part(guard, "bulkhead", "in_flight") == 1
        with pytest.raises(BulkheadFullError), guard.attempt():
            pytest.fail("there is no slot")
    for _ in range(2):
        with pytest.raises(OSError, match="down"), guard.attempt():
            raise OSError("down")
    assert part(guard, "bulkhead", "in_flight") == 0
    with pytest.raises(CircuitOpenError), guard.attempt():
        pytest.fail("the circuit is open")


def test_an_interrupted_with_block_gives_everything_back() -> None:
    guard = BlockingGuard(
        circuit_breaker=CircuitBreakerConfig(failure_threshold=1),
        bulkhead=BulkheadConfig(max_concurrent=1),
    )
    with pytest.raises(KeyboardInterrupt), guard.attempt():
        raise KeyboardInterrupt
    assert part(guard, "bulkhead", "in_flight") == 0
    assert part(guard, "circuit_breaker", "window_calls") == 0


def test_a_decorated_function_stays_what_it_was() -> None:
    guard = BlockingGuard(circuit_breaker=CircuitBreakerConfig())

    @guard
    def add(left: int, *, right: int = 2) -> int:
        """Add."""
        return left + right

    assert add(1) == 3
    assert add(1, right=1) == 2
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert part(guard, "circuit_breaker", "window_calls") == 2


def test_what_does_nothing_when_called_cannot_be_decorated() -> None:
    async def coroutine() -> None:
        return None

    def generator() -> object:
        yield

    for lazy in (coroutine, generator):
        with pytest.raises(ConfigurationError, match="does nothing when it is called"):
            BlockingGuard()(lazy)


def test_a_value_may_be_a_failure_and_busy_pauses_all_threads() -> None:
    clock = FakeThreads()
    verdicts = {200: Verdict.OK, 429: Verdict.BUSY, 503: Verdict.FAILED}
    guard = BlockingGuard(
        circuit_breaker=CircuitBreakerConfig(failure_threshold=1, timeout=60.0),
        rate_limit=RateLimitConfig(requests_per_second=100.0),
        judge=lambda status: verdicts[status],
        retry_after=lambda status: 5.0 if status == 429 else None,
        clock=clock,
    )
    assert clock.run(guard.call, int, 429) == 429
    other = clock.start(guard.call, int, 200)
    clock.advance(5.0)
    assert not other.done()
    clock.advance(0.1)
    assert other.result(0) == 200
    assert part(guard, "circuit_breaker", "window_calls") == 1
    clock.run(guard.call, int, 503)
    assert part(guard, "circuit_breaker", "state") == "open"


def test_a_listener_may_look_at_what_told_it() -> None:
    seen: list[object] = []

    def listen(event: Event) -> None:
        seen.append((type(event).__name__, part(guard, "circuit_breaker", "state")))

    config = CircuitBreakerConfig(failure_threshold=1)
    guard = BlockingGuard(circuit_breaker=config, listeners=Listeners([listen]))
    with pytest.raises(OSError, match="down"):
        guard.call(fail, OSError("down"))
    assert seen == [("CircuitStateChanged", "open")]


def test_the_parts_can_be_switched_under_the_lock() -> None:
    guard = BlockingGuard(circuit_breaker=CircuitBreakerConfig())
    with guard.lock:
        assert guard.breaker is not None
        guard.breaker.force_open()
    with pytest.raises(CircuitOpenError):
        guard.call(divmod, 1, 1)


def test_parts_that_are_switched_off_say_so_and_cost_nothing() -> None:
    off = {"enabled": False}
    names = ("circuit_breaker", "rate_limiter", "bulkhead", "retry_budget", "health")
    assert BlockingGuard().snapshot() == dict.fromkeys(names, off)
    assert BlockingGuard().call(divmod, 7, 2) == (3, 1)


def test_the_function_runs_without_the_lock() -> None:
    guard = BlockingGuard(circuit_breaker=CircuitBreakerConfig())
    others: list[Callable[[], object]] = [guard.snapshot, lambda: guard.call(divmod, 1, 1)]

    def ask_others() -> None:
        for other in others:
            thread = threading.Thread(target=other, daemon=True)
            thread.start()
            thread.join(30.0)
            assert not thread.is_alive()

    guard.call(ask_others)
