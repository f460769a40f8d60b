"""Sliding window: exact, whatever span one looks at; costs a log of what was granted."""

from __future__ import annotations

import math
from collections import deque

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import ConfigurationError
from shared.infrastructure.resilience.limits.limiter import TOLERANCE, RateLimiter
from shared.infrastructure.resilience.limits.pacing import Pacing


class SlidingWindow(RateLimiter):
    """Exact sliding window: a log of what was granted in the last `window` seconds.

    Args:
        limit: Permits in any span of `window` seconds.
        window: Length of that span in seconds.
        clock: Source of monotonic time.
    """

    def __init__(self, limit: int, window: float = 1.0, *, clock: Clock = MONOTONIC) -> None:
        if limit < 1 or window <= 0:
            raise ConfigurationError(
                f"limit must be at least 1 and window above 0: {limit=}, {window=}"
            )
        super().__init__(clock, rate=limit / window, ramp_time=window)
        self.limit = limit
        self.window = window
        self._ramp = Pacing()
        self._ramp_from = -math.inf
        self._log: deque[tuple[float, float]] = deque()
        self._used = 0.0

    @property
    def capacity(self) -> float:
        return float(self.limit)

    @property
    def utilization(self) -> float:
        self._expire(self._now())
        return min(1.0, self._used / self.limit)

    def most_within(self, seconds: float) -> float:
        return self.limit * float(math.ceil(seconds / self.window))

    def try_acquire(self, cost: float = 1.0) -> bool:
        now = self._now()
        if self._line or now < self._free_from or now < self._ramp.until:
            return super().try_acquire(cost)
        self._expire(now)
        if self._used + cost > self.limit + TOLERANCE:
            return False
        self._spend(cost, now)
        self._granted += cost
        self.last_granted_at = now
        return True

    def ramp(self, start: float) -> None:
        interval = self.window / self.limit
        self._ramp.start(start - interval, interval, start + self.window)
        self._ramp_from = start

    def _delay(self, cost: float, now: float) -> float:
        delay = self._log_delay(cost, now)
        return max(delay, self._ramp.delay(cost, now)) if now < self._ramp.until else delay

    def _log_delay(self, cost: float, now: float) -> float:
        self._expire(now)
        # Whole windows first, when the question is about a line longer than the limit.
        windows, rest = divmod(cost, self.limit)
        if rest == 0.0:
            windows, rest = windows - 1, float(self.limit)
        excess = self._used + rest - self.limit
        for granted_at, granted in self._log:
            if excess <= TOLERANCE:
                break
            excess -= granted
            if excess <= TOLERANCE:
                return windows * self.window + granted_at + self.window - now
        return windows * self.window

    def _spend(self, cost: float, now: float) -> None:
        self._log.append((now, cost))
        self._used += cost
        if now < self._ramp.until:
            self._ramp.spend(cost, now)

    def _unspend(self, cost: float, granted_at: float) -> None:
        # What was granted later stays, and what has left the window is worth nothing any more.
        later: list[tuple[float, float]] = []
        while self._log and cost > 0.0:
            at, granted = self._log.pop()
            returned = min(cost, granted) if at <= granted_at else 0.0
            cost -= returned
            self._used -= returned
            if at >= self._ramp_from:
                self._ramp.unspend(returned)
            if granted > returned:
                later.append((at, granted - returned))
        self._log.extend(reversed(later))

    def _expire(self, now: float) -> None:
        horizon = now - self.window + TOLERANCE
        while self._log and self._log[0][0] <= horizon:
            self._used -= self._log.popleft()[1]
