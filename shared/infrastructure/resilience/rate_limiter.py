"""Never send faster than the service wants to be called: the config of a limit, and its layer.

The limiters themselves are in `limits`, a file each.
"""

from __future__ import annotations

import enum

from pydantic import BaseModel, Field

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import CallRefusedError
from shared.infrastructure.resilience.events import NO_LISTENERS, LimiterPaused, Listeners
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res, Semantics, Verdict
from shared.infrastructure.resilience.limits import (
    RateLimiter,
    SlidingCounter,
    SlidingWindow,
    TokenBucket,
)
from shared.infrastructure.resilience.line_events import LineEvents
from shared.infrastructure.resilience.timeout import within_deadline


class RateLimitStrategy(enum.StrEnum):
    """Which limiter a `RateLimitConfig` builds."""

    TOKEN_BUCKET = "token_bucket"  # noqa: S105 - the name of an algorithm, not a secret
    SLIDING_WINDOW = "sliding_window"
    SLIDING_COUNTER = "sliding_counter"


_SLIDING = {
    RateLimitStrategy.SLIDING_WINDOW: SlidingWindow,
    RateLimitStrategy.SLIDING_COUNTER: SlidingCounter,
}
# Bound once: it is compared with on every call.
_OK = Verdict.OK


class RateLimitConfig(BaseModel, frozen=True, extra="forbid"):
    """How fast calls may start.

    Attributes:
        requests_per_second: Sustained rate; above 0; no default, for any would be wrong.
        burst_size: Permits that may go at once after a quiet time (token bucket only); default a
            tenth of a second's worth, at least 1.
        strategy: Token bucket (default), sliding window, or sliding counter, which keeps the same
            bound as the window in constant memory.
        window: Seconds of the sliding window or counter; 1; above 0.
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
        if self.strategy is RateLimitStrategy.TOKEN_BUCKET:
            return TokenBucket(self.requests_per_second, self.burst_size, clock=clock)
        sliding = _SLIDING[self.strategy]
        limit = max(1, int(self.requests_per_second * self.window))
        return sliding(limit, limit / self.requests_per_second, clock=clock)


@Position.PACE
class RateLimitLayer:
    """Wait for a permit before each attempt; pause everybody when the service says 429.

    Position: below retry, since every attempt spends the service's quota; above the breaker's
    permit, so that no half-open probe waits here. A permit taken for a call that a layer below
    refuses is given back. A limiter that adapts is told of every outcome.

    Args:
        limiter: Shared by all who spend the same quota.
        max_wait: Seconds a call may wait for its permit; None (default) waits as long as the
            caller's deadline allows.
        name: Service, used in events.
        clock: Source of monotonic time.
        listeners: Told of calls that had to wait, or were refused, and of pauses.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        max_wait: float | None = None,
        *,
        name: str = "service",
        clock: Clock = MONOTONIC,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self._limiter = limiter
        self._max_wait = max_wait
        self._name = name
        self._listeners = listeners
        self._line = LineEvents(name, "rate limiter", listeners, clock)
        self._adapts = limiter.adapts

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        limiter = self._limiter
        if not limiter.try_acquire():
            await self._line.tell(limiter.acquire(max_wait=within_deadline(self._max_wait)))
        granted_at = limiter.last_granted_at
        try:
            response = await inner.send(request)
        except CallRefusedError:
            limiter.refund(granted_at=granted_at)
            raise
        except Exception as exc:
            self._heed(exc, granted_at, inner.semantics)
            raise
        if self._adapts or inner.semantics.judge(response) is not _OK:
            self._heed(response, granted_at, inner.semantics)
        return response

    def _heed(
        self, outcome: Res | Exception, granted_at: float, semantics: Semantics[Req, Res]
    ) -> None:
        verdict = semantics.judge(outcome)
        self._limiter.record(verdict, granted_at=granted_at)
        if verdict is Verdict.BUSY and (wait := semantics.retry_after(outcome)):
            self._limiter.pause(wait)
            self._listeners(LimiterPaused(self._name, wait))
