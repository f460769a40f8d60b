"""Adaptive rate: find out how fast a service lets us call it, and follow when that changes."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, Field, model_validator

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.layer import Verdict
from shared.infrastructure.resilience.limits.limiter import TOLERANCE, RateLimiter

# As in the AWS SDKs: how often the rate of calls is measured, and what the latest slice weighs.
_SLICES_PER_SECOND = 2
_WEIGHT = 0.8
# Seconds between two looks at the curve: it is smooth, and a look costs more than a permit.
_LOOK = 1 / 64


class AdaptiveRateConfig(BaseModel, frozen=True, extra="forbid"):
    """Between what bounds a rate may move, and how it does.

    Attributes:
        initial_rate: Permits per second to begin with; above 0. None (default) is `max_rate`: no
            limit at all, if that is None too, until the service first asks for patience.
        min_rate: Permits per second that are always left; 0.5; above 0.
        max_rate: Permits per second that are never exceeded; None (default) is no bound.
        burst_size: The largest cost of a permit; 1; at least 1. As many permits may go at once
            after a quiet time, or a tenth of a second's worth where that is more.
        beta: Share of the rate that is left when the service asks for patience; 0.7; between 0
            and 1.
        scale: How steeply the rate grows, in permits per second and cubic second; 0.4; above 0.
        max_wait: Seconds a call may wait for its permit; 60. A call that would have to wait longer
            is refused at once; None waits as long as the caller's deadline allows.
    """

    initial_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    min_rate: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    max_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    burst_size: int = Field(default=1, ge=1)
    beta: float = Field(default=0.7, gt=0, lt=1)
    scale: float = Field(default=0.4, gt=0, allow_inf_nan=False)
    max_wait: float | None = Field(default=60.0, ge=0)

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> AdaptiveRateConfig:
        top = math.inf if self.max_rate is None else self.max_rate
        start = top if self.initial_rate is None else self.initial_rate
        if not self.min_rate <= start <= top:
            raise ValueError("min_rate must be at most initial_rate, and that at most max_rate")
        return self

    def build(self, *, clock: Clock = MONOTONIC) -> AdaptiveRate:
        """Return the limiter this config describes."""
        return AdaptiveRate(self, clock=clock)


class AdaptiveRate(RateLimiter):
    """A token bucket whose rate falls when the service asks for patience, and then grows again.

    Source: the adaptive retry mode of the AWS SDKs, whose curve is that of TCP CUBIC (RFC 9438).
    When the service asks for patience the rate falls to `beta` of the rate `w` that was too fast,
    and the bucket is emptied. From then on each success moves it to `scale * (t - k)**3 + w`, at
    `t` seconds after the fall, where `k` is the time it takes to get back to `w`: fast at first,
    carefully near `w`, boldly beyond it; at most twice the rate at which permits really go.

    Three things differ from the source. Answers to calls that began before the latest fall are no
    news, or a hundred calls in flight would bring the rate down a hundred times. A pause is no
    time to grow in. And a burst is measured at once, not as part of the quiet time before it.

    It has to hear of outcomes, from `RateLimitLayer` or through `record`. Any span of T seconds
    sees at most `max(burst_size, max_rate / 10) + max_rate * T` permits.

    Args:
        config: Bounds and curve.
        clock: Source of monotonic time.
    """

    adapts = True

    def __init__(
        self, config: AdaptiveRateConfig | None = None, *, clock: Clock = MONOTONIC
    ) -> None:
        self.config = config or AdaptiveRateConfig()
        self._fastest = math.inf if self.config.max_rate is None else self.config.max_rate
        rate = self._fastest if self.config.initial_rate is None else self.config.initial_rate
        super().__init__(clock, rate=rate, ramp_time=0.0)
        self._meter = _Meter(clock.now())
        # Permits missing in the bucket at an instant; in the future after a pause.
        self._missing = 0.0
        self._missing_at = clock.now()
        self._emptied_at = -math.inf
        self._throttled = 0
        self._fell_at = -math.inf
        # The curve: where it bends, how long it takes to get there, and since when it runs.
        self._too_fast = rate
        self._way_back = 0.0
        self._since = clock.now()
        self._change(rate, clock.now())

    @property
    def capacity(self) -> float:
        return float(self.config.burst_size)

    @property
    def utilization(self) -> float:
        return min(1.0, self._level(self._now()) / self._depth)

    def most_within(self, seconds: float) -> float:
        return self._deepest(self._fastest) + self._fastest * seconds

    def try_acquire(self, cost: float = 1.0) -> bool:
        now = self._now()
        if self._line or now < self._free_from:
            return super().try_acquire(cost)
        # `_delay` and `charge` in one, for this runs before every call.
        missing = self._level(now) + cost
        if missing - self._depth > TOLERANCE * self.rate:
            return False
        self._missing, self._missing_at = missing, now
        self._meter.add(cost, now)
        self._granted += cost
        self.last_granted_at = now
        return True

    def record(self, verdict: Verdict, *, granted_at: float = math.inf) -> None:
        now = self._now()
        if verdict is Verdict.BUSY:
            self._throttled += 1
            if granted_at > self._fell_at:
                self._fall(now)
        elif verdict is Verdict.OK and now >= self._look_at:
            self._grow(now)

    def pause_until(self, instant: float) -> None:
        self._since += max(0.0, instant - max(self._paused_until, self._now()))
        super().pause_until(instant)

    def ramp(self, start: float) -> None:
        self._missing = max(self._level(start), self._depth)
        self._missing_at = self._emptied_at = start

    def snapshot(self) -> dict[str, Any]:
        """Return what every limiter does, and `rate`, None while it is unlimited."""
        return {
            **super().snapshot(),
            "rate": self.rate if self.rate < math.inf else None,
            "measured_rate": self._meter.rate,
            "throttled_count": self._throttled,
        }

    def _fall(self, now: float) -> None:
        self._too_fast = min(self._meter.rate, self.rate)
        self._way_back = (self._too_fast * (1.0 - self.config.beta) / self.config.scale) ** (1 / 3)
        self._fell_at = now
        self._since = max(now, self._paused_until)
        self._change(self._too_fast * self.config.beta, now)
        self.ramp(self._missing_at)

    def _grow(self, now: float) -> None:
        elapsed = max(0.0, now - self._since)
        rate = self.config.scale * (elapsed - self._way_back) ** 3 + self._too_fast
        rate = min(rate, 2.0 * self._meter.rate)
        # Nothing speaks against the initial rate until the service does.
        self._change(rate if self._throttled else max(rate, self.rate), now)
        if self._line:
            self._queue.pump()

    def _change(self, rate: float, now: float) -> None:
        self._refill(now)
        self.rate = max(self.config.min_rate, min(rate, self._fastest))
        self._depth = self._deepest(self.rate)
        self.ramp_time = self._depth / self.rate if self.rate < math.inf else 0.0
        self._look_at = now + _LOOK

    def _deepest(self, rate: float) -> float:
        return max(float(self.config.burst_size), rate / 10.0)

    def _refill(self, now: float) -> None:
        at = max(now, self._missing_at)
        self._missing, self._missing_at = self._level(at), at

    def _level(self, now: float) -> float:
        """Return the permits missing in the bucket at `now`."""
        if self.rate == math.inf:
            return 0.0
        missing = self._missing - (now - self._missing_at) * self.rate
        return missing if missing > 0.0 else 0.0  # noqa: FURB136 - `max` costs three times as much

    def _delay(self, cost: float, now: float) -> float:
        excess = self._level(now) + cost - self._depth
        return excess / self.rate if excess > TOLERANCE * self.rate else 0.0

    def _spend(self, cost: float, now: float) -> None:
        self._meter.add(cost, now)
        self._refill(now)
        self._missing += cost

    def _unspend(self, cost: float, granted_at: float) -> None:
        self._meter.add(-cost, self._now())
        # What a pause has emptied does not come back with the permits of those it interrupted.
        if granted_at >= self._emptied_at:
            self._missing -= cost


class _Meter:
    """The rate at which permits go, over slices of half a second, the latest weighing most."""

    __slots__ = ("_count", "_slice", "_smoothed")

    def __init__(self, now: float) -> None:
        self._slice = int(now * _SLICES_PER_SECOND)
        self._count = 0.0
        self._smoothed = 0.0

    @property
    def rate(self) -> float:
        """Permits per second; never less than what has gone in the slice that is not over yet.

        Without that, a burst after a quiet time would be taken for the quiet time.
        """
        return max(self._smoothed, self._count * _SLICES_PER_SECOND)

    def add(self, cost: float, now: float) -> None:
        self._count += cost
        current = int(now * _SLICES_PER_SECOND)
        if current > self._slice:
            latest = max(0.0, self._count) * _SLICES_PER_SECOND / (current - self._slice)
            self._smoothed = _WEIGHT * latest + (1 - _WEIGHT) * self._smoothed
            self._count = 0.0
            self._slice = current
