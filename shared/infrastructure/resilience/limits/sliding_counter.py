"""Sliding window for large limits: exact as a bound, and a few dozen numbers however large."""

from __future__ import annotations

import math

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import ConfigurationError
from shared.infrastructure.resilience.limits.sliding_window import SlidingWindow


class SlidingCounter(SlidingWindow):
    """Sliding window that logs slices of time instead of permits: at most `slices + 1` entries.

    A permit counts until the last one of its slice has left the window, so the bound is that of
    `SlidingWindow`: no span of `window` seconds sees more than `limit`. The price is that a permit
    may count for up to `window / slices` seconds too long; a line of waiters still gets the whole
    limit in each window.

    The usual counter has two buckets, this window and the one before, and counts as much of the
    older one as is still in sight. That is smaller still but no such bound: it takes the older
    bucket for evenly spread, and lets almost twice the limit through where it was not.

    Args:
        limit: Permits in any span of `window` seconds.
        window: Length of that span in seconds.
        slices: Slices the window is cut into; 50; at least 1.
        clock: Source of monotonic time.
    """

    def __init__(
        self, limit: int, window: float = 1.0, *, slices: int = 50, clock: Clock = MONOTONIC
    ) -> None:
        super().__init__(limit, window, clock=clock)
        if slices < 1:
            raise ConfigurationError(f"slices must be at least 1, not {slices}")
        self._slice = window / slices
        self._slice_ends = -math.inf

    def _spend(self, cost: float, now: float) -> None:
        log = self._log
        before = 0.0
        if now >= self._slice_ends:
            self._slice_ends = (now // self._slice + 1.0) * self._slice
        elif log:
            before = log.pop()[1]
        # As if all of the slice had been granted just now: it leaves later, never earlier.
        log.append((now, before + cost))
        self._used: float = self._used + cost
        if now < self._ramp.until:
            self._ramp.spend(cost, now)

    def _unspend(self, cost: float, granted_at: float) -> None:
        own = (at for at, _ in self._log if at // self._slice == granted_at // self._slice)
        super()._unspend(cost, max((granted_at, *own)))
