"""What threads rely on besides: names and defaults, who is woken when, and what is left behind."""

from __future__ import annotations

import gc
import threading
import weakref
from types import SimpleNamespace

import pytest

from shared.infrastructure.resilience import (
    BulkheadConfig,
    CircuitBreakerConfig,
    ConfigurationError,
    HealthConfig,
)
from shared.infrastructure.resilience.blocking import BlockingGuard, BlockingKeyed, ThreadClock
from shared.infrastructure.resilience.blocking import clock as clock_module
from shared.infrastructure.resilience.blocking.course import LayerClock
from shared.infrastructure.resilience.blocking.lines import ThreadQueue
from tests.unit.resilience.fake_threads import FakeEvent, FakeThreads

ONE_SLOT = BulkheadConfig(max_concurrent=1)


def test_only_the_head_of_a_line_is_woken_and_a_line_that_is_empty_holds_nothing() -> None:
    clock = FakeThreads()
    guard = BlockingGuard(bulkhead=ONE_SLOT, clock=clock)
    assert guard.bulkhead is not None
    queue = guard.bulkhead._queue
    assert isinstance(queue, ThreadQueue)
    gates = [clock.event() for _ in range(4)]
    calls = [clock.start(guard.call, gate.wait) for gate in gates]
    last = list(queue._events.values())[2]
    assert isinstance(last, FakeEvent)
    gates[0].set()
    clock.advance(0.0)
    assert gates[1].waiting
    assert last.waits == 1
    for gate in gates[1:]:
        gate.set()
        clock.advance(0.0)
    assert [call.result(0) for call in calls] == [True] * 4
    assert queue._events == {}


@pytest.mark.parametrize("error", [OSError("down"), KeyboardInterrupt()])
def test_a_slot_is_passed_on_under_the_lock_however_a_with_block_ends(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeThreads()
    guard = BlockingGuard(bulkhead=ONE_SLOT, clock=clock)
    held: list[bool] = []
    wake = clock.wake

    def note(event: FakeEvent) -> None:
        thread = threading.Thread(target=lambda: held.append(not guard.lock.acquire(False)))
        thread.start()
        thread.join()
        wake(event)

    slot = guard.attempt()
    slot.__enter__()
    behind = clock.start(guard.call, divmod, 7, 2)
    monkeypatch.setattr(clock, "wake", note)
    assert not slot.__exit__(type(error), error, None)
    clock.advance(0.0)
    assert behind.result(0) == (3, 1)
    assert held == [True]


def test_a_with_block_that_ends_well_counts_as_a_good_call() -> None:
    guard = BlockingGuard("db", circuit_breaker=CircuitBreakerConfig(), health=HealthConfig())
    with guard.attempt():
        assert guard.snapshot()["health"]["checks"] == 0
    assert guard.snapshot()["circuit_breaker"]["window_calls"] == 1
    assert guard.snapshot()["health"]["checks"] == 1
    assert guard.name == "db"


def test_an_error_that_was_handled_is_gone_without_the_garbage_collector() -> None:
    class DownError(Exception):
        pass

    def fail() -> None:
        raise DownError

    guard = BlockingGuard(bulkhead=ONE_SLOT)
    gc.disable()
    try:
        with pytest.raises(DownError) as raised:
            guard.call(fail)
        error = weakref.ref(raised.value)
        del raised
        assert error() is None
    finally:
        gc.enable()


def test_what_needs_a_timer_says_that_a_thread_has_none() -> None:
    with pytest.raises(ConfigurationError, match="a thread has no timers"):
        LayerClock(FakeThreads()).call_later(1.0, print)


def test_a_thousand_keys_are_held_by_default_and_one_can_be_discarded() -> None:
    numbers = BlockingKeyed(lambda key: key)
    for key in range(1001):
        numbers.get(key)
    assert len(numbers) == 1000
    assert 0 not in numbers
    numbers.discard(1)
    assert 1 not in numbers


@pytest.mark.parametrize(
    ("seconds", "waits"), [(0.1, [0.1]), (0.4, [0.2, 0.2]), (1.3, [0.2] * 6 + [0.1])]
)
def test_the_main_thread_looks_for_signals_five_times_a_second(
    seconds: float, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def wait(_event: threading.Event, timeout: float) -> bool:
        assert len(waited) < len(waits)
        waited.append(timeout)
        return False

    monkeypatch.setattr(threading.Event, "wait", wait)
    now = SimpleNamespace(monotonic=lambda: sum(waited))
    monkeypatch.setattr(clock_module, "time", now)
    event = ThreadClock().event()
    assert not event.wait(seconds)
    assert waited == pytest.approx(waits)
    event.set()
    assert event.wait(seconds)
    assert waited == pytest.approx(waits)
