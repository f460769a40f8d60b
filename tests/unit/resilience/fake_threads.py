"""A clock for threads that moves only when told to, and knows when all of them wait for it."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Real seconds after which a test is stuck.
_STUCK = 10.0


class FakeEvent:
    """An event of `FakeThreads`."""

    def __init__(self, clock: FakeThreads) -> None:
        self._clock = clock
        self._is_set = False
        self.waits = 0
        self.waiting = False

    def set(self) -> None:
        with self._clock.changed:
            self._is_set = True
            self._clock.wake(self)

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        clock = self._clock
        if clock.interrupts:
            raise clock.interrupts.pop()
        with clock.changed:
            if not self._is_set:
                self.waits += 1
                self.waiting = True
                clock.park(self, timeout)
                assert clock.changed.wait_for(lambda: not self.waiting, _STUCK)
            return self._is_set


class FakeThreads:
    """A `BlockingClock` that stands still until `advance`.

    Every thread that waits by it is started by `start`. Both return once all threads have ended or
    wait, so that what happens is the same in every run.

    Attributes:
        interrupts: Errors that the next waits raise, such as `KeyboardInterrupt`.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.changed = threading.Condition()
        self.interrupts: list[BaseException] = []
        self._now = now
        self._busy = 0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, FakeEvent, int]] = []

    def now(self) -> float:
        return self._now

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `function` in a thread of its own, and return when it has ended or waits."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as exc:
                future.set_exception(exc)
            with self.changed:
                self._busy -= 1
                self.changed.notify_all()

        with self.changed:
            self._busy += 1
            threading.Thread(target=run, daemon=True).start()
            self._settle()
        return future

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a thread of its own, and move time on for as long as it waits."""
        future = self.start(function, *args, **kwargs)
        while not future.done():
            assert self._timers, "it waits for ever"
            self.advance(max(0.0, self._timers[0][0] - self._now))
        return future.result()

    def advance(self, seconds: float) -> None:
        """Move time on; each wait ends at its own instant."""
        target = self._now + seconds
        with self.changed:
            self._settle()
            while self._timers and self._timers[0][0] <= target:
                due, _, event, waits = heapq.heappop(self._timers)
                if event.waiting and event.waits == waits:
                    self._now = max(self._now, due)
                    self.wake(event)
                    self._settle()
            self._now = target

    def park(self, event: FakeEvent, timeout: float | None) -> None:
        if timeout is not None:
            entry = (self._now + timeout, next(self._order), event, event.waits)
            heapq.heappush(self._timers, entry)
        self._busy -= 1
        self.changed.notify_all()

    def wake(self, event: FakeEvent) -> None:
        if event.waiting:
            event.waiting = False
            self._busy += 1
            self.changed.notify_all()

    def _settle(self) -> None:
        assert self.changed.wait_for(lambda: self._busy == 0, _STUCK), "a thread is stuck"
