"""Token bucket: allows bursts, and costs one float; the cheapest limiter."""

from __future__ import annotations

import math

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import ConfigurationError
from shared.infrastructure.resilience.limits.limiter import TOLERANCE, RateLimiter


class TokenBucket(RateLimiter):
    """Token bucket as the generic cell rate algorithm: one float, no refill loop.

    Source: ITU-T I.371, the virtual scheduling form.

    Args:
        rate: Permits per second.
        burst: Permits that may go at once; default a tenth of a second's worth, at least 1.
        clock: Source of monotonic time.
    """

    def __init__(self, rate: float, burst: int | None = None, *, clock: Clock = MONOTONIC) -> None:
        if rate <= 0 or (burst is not None and burst < 1):
            raise ConfigurationError(
                f"rate must be above 0 and burst at least 1: {rate=}, {burst=}"
            )
        self.burst = burst or max(1, int(rate / 10))
        super().__init__(clock, rate=rate, ramp_time=self.burst / rate)
        self._interval = 1.0 / rate
        self._depth = self.burst * self._interval + TOLERANCE
        # The instant at which the bucket will be full again.
        self._full_at = -math.inf
        self._emptied_at = -math.inf

    @property
    def capacity(self) -> float:
        return float(self.burst)

    @property
    def utilization(self) -> float:
        missing = max(0.0, self._full_at - self._now()) * self.rate
        return min(1.0, missing / self.burst)

    def most_within(self, seconds: float) -> float:
        return self.burst + self.rate * seconds

    def try_acquire(self, cost: float = 1.0) -> bool:
        now = self._now()
        if self._line or now < self._free_from:
            return super().try_acquire(cost)
        # `_delay` and `charge` in one, for this runs before every call.
        full_at = self._full_at
        start = full_at if full_at > now else now  # noqa: FURB136 - `max` costs half as much again
        full_at = start + cost * self._interval
        if full_at - now > self._depth:
            return False
        self._full_at = full_at
        self._granted += cost
        self.last_granted_at = now
        return True

    def ramp(self, start: float) -> None:
        self._full_at = max(self._full_at, start + self.burst * self._interval)
        self._emptied_at = start

    def _delay(self, cost: float, now: float) -> float:
        missing = max(0.0, self._full_at - now) + (cost - self.burst) * self._interval
        return missing if missing > TOLERANCE else 0.0

    def _spend(self, cost: float, now: float) -> None:
        self._full_at = max(self._full_at, now) + cost * self._interval

    def _unspend(self, cost: float, granted_at: float) -> None:
        # What a pause has emptied does not come back with the permits of those it interrupted.
        if granted_at >= self._emptied_at:
            self._full_at -= cost * self._interval
