"""Single flight for threads: who asks for the same thing at the same time waits for the first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from shared.infrastructure.resilience.blocking.clock import THREADS, BlockingClock, ThreadEvent
from shared.infrastructure.resilience.blocking.course import warn_of_event_loop
from shared.infrastructure.resilience.errors import ConfigurationError, DeadlineExceededError
from shared.infrastructure.resilience.timeout import remaining_time

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class BlockingSingleFlight(Generic[K, T]):
    """One computation a key at a time, for all threads that ask for it.

    The thread that comes first computes, the others wait, as long as their deadline allows. If it
    is interrupted (`KeyboardInterrupt`, `SystemExit`) one of them computes in its place. Nothing is
    kept: whoever comes after the end starts anew.

    Args:
        clock: How to wait.
    """

    def __init__(self, *, clock: BlockingClock = THREADS) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._flights: dict[K, _Flight[T]] = {}

    def __len__(self) -> int:
        """Return the number of keys being computed."""
        return len(self._flights)

    def do(self, key: K, compute: Callable[[], T]) -> T:
        """Return what `compute` returns, or what a computation under way for `key` will.

        All who wait get the very same object.

        Raises:
            Exception: Whatever the computation raises; all who wait for it get it.
            DeadlineExceededError: The deadline of a thread that waits has passed.
            ConfigurationError: The computation of `key` asks for `key` itself.
        """
        mine = _Flight[T]()
        while True:
            event = self._clock.event()
            with self._lock:
                flight = self._flights.setdefault(key, mine)
                if flight is not mine:
                    flight.waiting.append(event)
            if flight is mine:
                return self._fly(key, mine, compute)
            self._wait(key, flight, event)
            if flight.error is not None:
                raise flight.error
            if flight.results:
                return flight.results[0]

    def _fly(self, key: K, flight: _Flight[T], compute: Callable[[], T]) -> T:
        try:
            flight.results.append(compute())
            return flight.results[0]
        except Exception as exc:
            flight.error = exc
            raise
        finally:
            with self._lock:
                del self._flights[key]
            for event in flight.waiting:
                event.set()

    def _wait(self, key: K, flight: _Flight[T], event: ThreadEvent) -> None:
        if flight.thread == threading.get_ident():
            raise ConfigurationError(f"the computation of {key!r} waits for itself: use other keys")
        warn_of_event_loop()
        if not event.wait(remaining_time()):
            raise DeadlineExceededError(f"the deadline passed while waiting for {key!r}")


class _Flight(Generic[T]):
    """A computation under way: who computes, who waits, and what came of it."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.waiting: list[ThreadEvent] = []
        self.results: list[T] = []
        self.error: Exception | None = None
