"""Rate limiters: never send faster than the service wants to be called.

`TokenBucket` allows bursts and is the cheaper one: any span of T seconds sees at most
`burst + rate * T` permits. `SlidingWindow` is exact: no span of `window` seconds sees more than
`limit`. Both serve waiters in order of arrival, and a cancelled waiter costs nothing.
"""

from __future__ import annotations

import abc
import enum
import math
from collections import deque
from typing import Any

from pydantic import BaseModel, Field

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import (
    CallRefusedError,
    ConfigurationError,
    RateLimitExceededError,
)
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res, Verdict
from shared.infrastructure.resilience.timeout import within_deadline
from shared.infrastructure.resilience.wait_queue import WaitQueue

# Sums of floats land a hair beside the exact instant; a permit is not refused for that.
_TOLERANCE = 1e-9


class RateLimitStrategy(enum.StrEnum):
    """Which limiter a `RateLimitConfig` builds."""

    TOKEN_BUCKET = "token_bucket"  # noqa: S105 - the name of an algorithm, not a secret
    SLIDING_WINDOW = "sliding_window"


class RateLimitConfig(BaseModel, frozen=True, extra="forbid"):
    """How fast calls may start.

    Attributes:
        requests_per_second: Sustained rate; above 0; no default, for any would be wrong.
        burst_size: Permits that may go at once after a quiet time (token bucket only); default a
            tenth of a second's worth, at least 1.
        strategy: Token bucket (default) or sliding window.
        window: Seconds of the sliding window; 1; above 0.
        max_wait: Seconds a call may wait for its permit; 60. A call that would have to wait longer
            is refused at once; None waits as long as the caller's deadline allows, which may be
            for hours when a service answers 429 with a long Retry-After.
    """

    requests_per_second: float = Field(gt=0)
    burst_size: int | None = Field(default=None, ge=1)
    strategy: RateLimitStrategy = RateLimitStrategy.TOKEN_BUCKET
    window: float = Field(default=1.0, gt=0)
    max_wait: float | None = Field(default=60.0, ge=0)

    def build(self, *, clock: Clock = MONOTONIC) -> RateLimiter:
        """Return the limiter this config describes."""
        if self.strategy is RateLimitStrategy.SLIDING_WINDOW:
            limit = max(1, int(self.requests_per_second * self.window))
            return SlidingWindow(limit, limit / self.requests_per_second, clock=clock)
        return TokenBucket(self.requests_per_second, self.burst_size, clock=clock)


class RateLimiter(abc.ABC):
    """What both limiters share: the line of waiters, pausing, and refunds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queue = WaitQueue(self._take, self.refund, clock)
        self._paused_until = -math.inf
        self._granted = 0.0
        self._refused = 0

    @property
    @abc.abstractmethod
    def capacity(self) -> float:
        """The largest cost that can ever be granted at once."""

    @property
    @abc.abstractmethod
    def utilization(self) -> float:
        """The share of the capacity in use now, 0.0 to 1.0."""

    @abc.abstractmethod
    def _delay(self, cost: float, now: float) -> float:
        """Return the seconds until `cost` could be granted; 0.0 means now."""

    @abc.abstractmethod
    def _spend(self, cost: float, now: float) -> None:
        """Account for `cost` granted now."""

    @abc.abstractmethod
    def _unspend(self, cost: float) -> None:
        """Undo `_spend` for the latest `cost`."""

    def try_acquire(self, cost: float = 1.0) -> bool:
        """Take `cost` if it is there and nobody waits for it; never wait."""
        return not self._queue and self._take(cost) == 0.0

    async def acquire(self, cost: float = 1.0, *, max_wait: float | None = None) -> None:
        """Take `cost`, waiting in line if need be.

        Raises:
            RateLimitExceededError: The permit would come later than `max_wait` seconds from now;
                known cases are refused at once, without waiting.
            ConfigurationError: `cost` is not positive, or more than the limiter ever holds.
        """
        if not 0.0 < cost <= self.capacity:
            raise ConfigurationError(
                f"cost {cost} can never be granted: it must be above 0 and at most {self.capacity}"
            )
        if self.try_acquire(cost):
            return
        now = self._clock.now()
        delay = max(self._delay(self._queue.queued_cost + cost, now), self._paused_until - now)
        if max_wait is not None and delay > max_wait:
            self._refuse(delay)
        if not await self._queue.join(cost, max_wait):
            self._refuse(self._delay(self._queue.queued_cost + cost, self._clock.now()))

    def refund(self, cost: float = 1.0) -> None:
        """Give back a permit that was not used; the next waiter may have it at once."""
        self._unspend(cost)
        self._granted -= cost
        self._queue.pump()

    def pause(self, seconds: float) -> None:
        """Grant nothing for `seconds`, as a service asks for with 429 and Retry-After."""
        self._paused_until = max(self._paused_until, self._clock.now() + seconds)
        self._queue.pump()

    def snapshot(self) -> dict[str, Any]:
        """Return utilisation and counters as plain JSON types."""
        return {
            "utilization": self.utilization,
            "capacity": self.capacity,
            "waiting": len(self._queue),
            "granted": self._granted,
            "refused_count": self._refused,
            "paused_for": max(0.0, self._paused_until - self._clock.now()),
        }

    def _take(self, cost: float) -> float:
        now = self._clock.now()
        delay = max(self._delay(cost, now), self._paused_until - now)
        if delay > _TOLERANCE:
            return delay
        self._spend(cost, now)
        self._granted += cost
        return 0.0

    def _refuse(self, delay: float) -> None:
        self._refused += 1
        raise RateLimitExceededError(
            f"the next permit is {delay:.3f} s away, longer than the call can wait",
            retry_after=delay,
        )


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
        super().__init__(clock)
        self.rate = rate
        self.burst = burst or max(1, int(rate / 10))
        self._interval = 1.0 / rate
        # The instant at which the bucket will be full again.
        self._full_at = -math.inf

    @property
    def capacity(self) -> float:
        return float(self.burst)

    @property
    def utilization(self) -> float:
        missing = max(0.0, self._full_at - self._clock.now()) * self.rate
        return min(1.0, missing / self.burst)

    def _delay(self, cost: float, now: float) -> float:
        missing = max(0.0, self._full_at - now) + (cost - self.burst) * self._interval
        return missing if missing > _TOLERANCE else 0.0

    def _spend(self, cost: float, now: float) -> None:
        self._full_at = max(self._full_at, now) + cost * self._interval

    def _unspend(self, cost: float) -> None:
        self._full_at -= cost * self._interval


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
        super().__init__(clock)
        self.limit = limit
        self.window = window
        self._log: deque[tuple[float, float]] = deque()
        self._used = 0.0

    @property
    def capacity(self) -> float:
        return float(self.limit)

    @property
    def utilization(self) -> float:
        self._expire(self._clock.now())
        return min(1.0, self._used / self.limit)

    def _delay(self, cost: float, now: float) -> float:
        self._expire(now)
        # Whole windows first, when the question is about a line longer than the limit.
        windows, rest = divmod(cost, self.limit)
        if rest == 0.0:
            windows, rest = windows - 1, float(self.limit)
        excess = self._used + rest - self.limit
        for granted_at, granted in self._log:
            if excess <= _TOLERANCE:
                break
            excess -= granted
            if excess <= _TOLERANCE:
                return windows * self.window + granted_at + self.window - now
        return windows * self.window

    def _spend(self, cost: float, now: float) -> None:
        self._log.append((now, cost))
        self._used += cost

    def _unspend(self, cost: float) -> None:
        while self._log and cost > 0.0:
            granted_at, granted = self._log.pop()
            returned = min(cost, granted)
            cost -= returned
            self._used -= returned
            if granted > returned:
                self._log.append((granted_at, granted - returned))

    def _expire(self, now: float) -> None:
        horizon = now - self.window + _TOLERANCE
        while self._log and self._log[0][0] <= horizon:
            self._used -= self._log.popleft()[1]


@Position.PACE
class RateLimitLayer:
    """Wait for a permit before each attempt; pause everybody when the service says 429.

    Position: below retry, since every attempt spends the service's quota; above the breaker's
    permit, so that no half-open probe waits here. A permit taken for a call that a layer below
    refuses is given back.
    """

    def __init__(self, limiter: RateLimiter, max_wait: float | None = None) -> None:
        self._limiter = limiter
        self._max_wait = max_wait

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        if not self._limiter.try_acquire():
            await self._limiter.acquire(max_wait=within_deadline(self._max_wait))
        try:
            response = await inner.send(request)
        except CallRefusedError:
            self._limiter.refund()
            raise
        if inner.semantics.judge(response) is Verdict.BUSY:
            self._limiter.pause(inner.semantics.retry_after(response) or 0.0)
        return response
