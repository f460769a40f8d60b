"""Latencies of the last while, for whoever needs a percentile of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from shared.infrastructure.resilience.clock import MONOTONIC, Clock


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest of some sorted values that `percent` of them do not exceed."""
    return ordered[-(-percent * len(ordered) // 100) - 1]


class RotatingHistogram:
    """Latencies of the last while, in buckets of 10 %: two generations, the older dropped whole.

    Args:
        window: Seconds a latency counts for, at most; at least half of them.
        clock: Source of monotonic time.
    """

    _GROWTH = 1.1
    _SHORTEST, _LONGEST = 1e-6, 1e6  # seconds; together they bound the number of buckets

    def __init__(self, window: float, *, clock: Clock = MONOTONIC) -> None:
        self._half = window / 2
        self._clock = clock
        self._began = clock.now()
        self._older: Counter[int] = Counter()
        self._newer: Counter[int] = Counter()

    def record(self, seconds: float) -> None:
        """Count one latency."""
        self._rotate()
        within = min(max(seconds, self._SHORTEST), self._LONGEST)
        self._newer[math.ceil(math.log(within, self._GROWTH))] += 1

    def percentile(self, share: float, min_samples: int = 1) -> float | None:
        """Return the seconds that a `share` of latencies stays within, None for too few samples."""
        self._rotate()
        counts = self._older + self._newer
        total = counts.total()
        if total < min_samples:
            return None
        buckets = sorted(counts)
        reached = zip(buckets, accumulate(counts[bucket] for bucket in buckets), strict=True)
        bucket = next(bucket for bucket, within in reached if within >= share * total)
        return math.pow(self._GROWTH, bucket)

    def _rotate(self) -> None:
        passed = self._clock.now() - self._began
        if passed < self._half:
            return
        self._older = self._newer if passed < 2 * self._half else Counter()
        self._newer = Counter()
        self._began += passed - passed % self._half
