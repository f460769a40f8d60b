"""What happened lately: outcomes over a span of time or a number of calls, counted in O(1)."""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol


class OutcomeWindow(Protocol):
    """Running totals of the outcomes that still count.

    Attributes:
        failures: How many outcomes in it failed.
        slow: How many were slow.
    """

    failures: int
    slow: int

    @property
    def calls(self) -> int:
        """Outcomes in the window."""
        ...

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

    __slots__ = (
        *("_buckets", "_counted", "_ends", "_slot", "_slots_per_second", "_successes"),
        *("failures", "slow"),
    )

    def __init__(self, seconds: float, buckets: int = 10) -> None:
        self._slots_per_second = buckets / seconds
        self._buckets = [[0, 0, 0] for _ in range(buckets)]
        self._slot = 0
        self._ends = -math.inf
        # Successes of the slice that runs: added to its bucket when somebody else asks for it.
        self._successes = 0
        self._counted = self.failures = self.slow = 0

    @property
    def calls(self) -> int:
        return self._counted + self._successes

    def succeed(self, now: float) -> None:
        if now >= self._ends:
            self.advance(now)
        self._successes += 1

    def record(self, now: float, *, failed: bool, slow: bool) -> None:
        self.advance(now)
        bucket = self._buckets[self._slot % len(self._buckets)]
        bucket[0] += 1
        bucket[1] += failed
        bucket[2] += slow
        self._counted += 1
        self.failures += failed
        self.slow += slow

    def advance(self, now: float) -> None:
        if now < self._ends:
            return
        size = len(self._buckets)
        self._buckets[self._slot % size][0] += self._successes
        self._counted += self._successes
        self._successes = 0
        slot = int(now * self._slots_per_second)
        for passed in range(min(size, slot - self._slot)):
            bucket = self._buckets[(slot - passed) % size]
            self._counted -= bucket[0]
            self.failures -= bucket[1]
            self.slow -= bucket[2]
            bucket[:] = (0, 0, 0)
        self._slot = slot
        self._ends = (slot + 1) / self._slots_per_second

    def clear(self) -> None:
        for bucket in self._buckets:
            bucket[:] = (0, 0, 0)
        self._successes = self._counted = self.failures = self.slow = 0


class CountWindow:
    """The last `size` outcomes, however long ago they were.

    Args:
        size: Outcomes remembered; at least 1.
    """

    __slots__ = ("_outcomes", "_size", "failures", "slow")

    def __init__(self, size: int) -> None:
        self._size = size
        self._outcomes: deque[tuple[bool, bool]] = deque(maxlen=size)
        self.failures = self.slow = 0

    @property
    def calls(self) -> int:
        return len(self._outcomes)

    def succeed(self, now: float) -> None:
        self.record(now, failed=False, slow=False)

    def record(self, now: float, *, failed: bool, slow: bool) -> None:
        if len(self._outcomes) == self._size:
            was_failed, was_slow = self._outcomes[0]
            self.failures -= was_failed
            self.slow -= was_slow
        self._outcomes.append((failed, slow))
        self.failures += failed
        self.slow += slow

    def advance(self, now: float) -> None:
        """Do nothing: only new outcomes push old ones out."""

    def clear(self) -> None:
        self._outcomes.clear()
        self.failures = self.slow = 0
