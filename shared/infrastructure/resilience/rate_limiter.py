"""Never send faster than the service wants to be called: the config of a limit, and its layer.

The limiters themselves are in `limits`, a file each.
"""

from __future__ import annotations

import enum

from pydantic import BaseModel, Field

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import CallRefusedError
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res, Verdict
from shared.infrastructure.resilience.limits import RateLimiter, SlidingWindow, TokenBucket
from shared.infrastructure.resilience.timeout import within_deadline


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
        limiter = self._limiter
        if not limiter.try_acquire():
            await limiter.acquire(max_wait=within_deadline(self._max_wait))
        granted_at = limiter.last_granted_at
        try:
            response = await inner.send(request)
        except CallRefusedError:
            limiter.refund(granted_at=granted_at)
            raise
        if inner.semantics.judge(response) is Verdict.BUSY:
            limiter.pause(inner.semantics.retry_after(response) or 0.0)
        return response
