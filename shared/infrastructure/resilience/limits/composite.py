"""Several limits at once: 10 a second and 1000 a day."""

from __future__ import annotations

import math

from shared.infrastructure.resilience.errors import ConfigurationError
from shared.infrastructure.resilience.layer import Verdict
from shared.infrastructure.resilience.limits.limiter import RateLimiter


class AllOf(RateLimiter):
    """A limiter that grants what all its members grant, and takes from all of them or from none.

    It has one line of its own, served in order of arrival. A member may also be used on its own,
    or in another `AllOf`: each limit still holds. Between the two lines there is no order, though,
    and a permit given back in one reaches the other only when that asks again by itself.

    After a pause permits are spread as the member that recovers fastest spreads them, so that a
    limit per day does not turn a short pause into a slow day.

    Args:
        limiters: At least one, all on one clock; a cost is charged to each.

    Raises:
        ConfigurationError: There is no limiter, or their clocks differ.
    """

    def __init__(self, *limiters: RateLimiter) -> None:
        if not limiters or any(limiter.clock is not limiters[0].clock for limiter in limiters):
            raise ConfigurationError("give AllOf at least one limiter, all with the same clock")
        self.limiters = limiters
        self.adapts = any(limiter.adapts for limiter in limiters)
        self._quickest = min(limiters, key=lambda limiter: limiter.ramp_time)
        super().__init__(
            limiters[0].clock,
            rate=min(limiter.rate for limiter in limiters),
            ramp_time=self._quickest.ramp_time,
        )

    @property
    def capacity(self) -> float:
        return min(limiter.capacity for limiter in self.limiters)

    @property
    def utilization(self) -> float:
        return max(limiter.utilization for limiter in self.limiters)

    def most_within(self, seconds: float) -> float:
        return min(limiter.most_within(seconds) for limiter in self.limiters)

    def ramp(self, start: float) -> None:
        self._quickest.ramp(start)

    def record(self, verdict: Verdict, *, granted_at: float = math.inf) -> None:
        for limiter in self.limiters:
            limiter.record(verdict, granted_at=granted_at)

    def _delay(self, cost: float, now: float) -> float:
        return max(limiter.delay(cost, now) for limiter in self.limiters)

    def _spend(self, cost: float, now: float) -> None:
        for limiter in self.limiters:
            limiter.charge(cost, now)

    def _unspend(self, cost: float, granted_at: float) -> None:
        for limiter in self.limiters:
            limiter.refund(cost, granted_at=granted_at)
