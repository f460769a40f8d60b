"""What happened lately: outcomes over a span of time or a number of calls, counted in O(1)."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class OutcomeWindow(Protocol):
    """Running totals of the outcomes that still count.

    Attributes:
        calls: Outcomes in the window.
        failures: How many of them failed.
        slow: How many of them were slow.
    """

    calls: int
    failures: int
    slow: int

    def record(self, now: float, *, failed: bool, slow: bool) -> None:
        """Add one outcome at instant `now`, in seconds."""
        ...

    def succeed(self, now: float) -> None:
        """Add a success that was not slow: the ordinary case, kept cheap."""
        ...

    def advance(self, now: float) -> None:
        """Forget what is out of the window at instant `now`."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...


class TimeWindow:
    """The outcomes of the last `seconds`, in `buckets` slices that are forgotten whole.

    Args:
        seconds: Length of the window; above 0.
        buckets: Slices it is made of; its true length varies by one slice.
    """

    __slots__ = ("_bucket", "_buckets", "_slot", "_slots_per_second", "calls", "failures", "slow")

    def __init__(self, seconds: float, buckets: int = 10) -> None:
        self._slots_per_second = buckets / seconds
        self._buckets = [[0, 0, 0] for _ in range(buckets)]
        self._slot = 0
        self._bucket = self._buckets[0]
        self.calls = self.failures = self.slow = 0

    def succeed(self, now: float) -> None:
        slot = int(now * self._slots_per_second)
        if slot != self._slot:
            self._move_to(slot)
        self._bucket[0] += 1
        self.calls += 1

    def record(self, now: float, *, failed: bool, slow: bool) -> None:
        self.succeed(now)
        if failed:
            self._bucket[1] += 1
            self.failures += 1
        if slow:
            self._bucket[2] += 1
            self.slow += 1

    def advance(self, now: float) -> None:
        slot = int(now * self._slots_per_second)
        if slot != self._slot:
            self._move_to(slot)

    def clear(self) -> None:
        for bucket in self._buckets:
            bucket[:] = (0, 0, 0)
        self.calls = self.failures = self.slow = 0

    def _move_to(self, slot: int) -> None:
        size = len(self._buckets)
        for passed in range(min(size, slot - self._slot)):
            bucket = self._buckets[(slot - passed) % size]
            self.calls -= bucket[0]
            self.failures -= bucket[1]
            self.slow -= bucket[2]
            bucket[:] = (0, 0, 0)
        self._slot = slot
        self._bucket = self._buckets[slot % size]


class CountWindow:
    """The last `size` outcomes, however long ago they were.

    Args:
        size: Outcomes remembered; at least 1.
    """

    __slots__ = ("_outcomes", "_size", "calls", "failures", "slow")

    def __init__(self, size: int) -> None:
        self._size = size
        self._outcomes: deque[tuple[bool, bool]] = deque()
        self.calls = self.failures = self.slow = 0

    def succeed(self, now: float) -> None:
        self.record(now, failed=False, slow=False)

    def record(self, now: float, *, failed: bool, slow: bool) -> None:
        if self.calls == self._size:
            was_failed, was_slow = self._outcomes.popleft()
            self.failures -= was_failed
            self.slow -= was_slow
        else:
            self.calls += 1
        self._outcomes.append((failed, slow))
        self.failures += failed
        self.slow += slow

    def advance(self, now: float) -> None:
        """Do nothing: only new outcomes push old ones out."""

    def clear(self) -> None:
        self._outcomes.clear()
        self.calls = self.failures = self.slow = 0
