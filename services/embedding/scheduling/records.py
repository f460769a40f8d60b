"""What a scheduler has done so far."""

from __future__ import annotations

from collections import Counter
from typing import Any

from services.embedding.options import Lane
from services.embedding.scheduling.batches import Batch
from shared.infrastructure.resilience import Clock
from shared.infrastructure.resilience.histogram import RotatingHistogram

_WAIT_WINDOW = 60.0


class Records:
    """Counters, and how long jobs have waited.

    Attributes:
        expired: Jobs dropped because their deadline had passed.
        cancelled: Jobs dropped because nobody wanted them any more.
    """

    def __init__(self, clock: Clock) -> None:
        self.expired = 0
        self.cancelled = 0
        self._batches = self._rows = 0
        self._tokens = self._padded_tokens = 0.0
        self._seconds = 0.0
        self._closed: Counter[str] = Counter()
        self._waits = {lane: RotatingHistogram(_WAIT_WINDOW, clock=clock) for lane in Lane}
        self._waited = dict.fromkeys(Lane, 0)
        self._waited_seconds = dict.fromkeys(Lane, 0.0)

    def count(self, batch: Batch, seconds: float) -> None:
        """Count a batch that took `seconds`."""
        self._batches += 1
        self._rows += len(batch.jobs)
        self._tokens += batch.load.tokens
        self._padded_tokens += batch.cost[0]
        self._seconds += seconds
        self._closed[batch.closed_by] += 1
        for job in batch.jobs:
            wait = batch.began - job.since
            self._waits[job.lane].record(wait)
            self._waited[job.lane] += 1
            self._waited_seconds[job.lane] += wait

    def waits(self, lane: Lane) -> dict[str, Any]:
        """Return how long jobs of a lane have waited for their batch."""
        waits = self._waits[lane]
        return {
            "waited_count": self._waited[lane],
            "waited_seconds": self._waited_seconds[lane],
            "wait_p50": waits.percentile(0.5),
            "wait_p95": waits.percentile(0.95),
            "wait_p99": waits.percentile(0.99),
        }

    def snapshot(self) -> dict[str, Any]:
        """Return counters as plain JSON types."""
        return {
            "batch_count": self._batches,
            "row_count": self._rows,
            "token_count": self._tokens,
            "padded_token_count": self._padded_tokens,
            "waste_ratio": self._padded_tokens / self._tokens if self._tokens else 1.0,
            "batch_seconds": self._seconds,
            "closed_counts": dict(self._closed),
            "expired_count": self.expired,
            "cancelled_count": self.cancelled,
        }
