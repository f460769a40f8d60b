"""The layer for a rate limit that is shared with other processes; see `limits.redis_limiter`."""

from __future__ import annotations

from typing import Protocol

from shared.infrastructure.resilience.errors import CallRefusedError
from shared.infrastructure.resilience.events import (
    NO_LISTENERS,
    CallRefused,
    LimiterPaused,
    Listeners,
)
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res, Semantics, Verdict
from shared.infrastructure.resilience.limits import Reservation
from shared.infrastructure.resilience.timeout import within_deadline


class ReservingLimiter(Protocol):
    """What the layer needs of a limiter; those of one process have it too."""

    async def reserve(self, cost: float, *, max_wait: float | None = None) -> Reservation:
        """Take a permit, to be settled later."""
        ...

    def pause(self, seconds: float) -> None:
        """Grant nothing for `seconds`."""
        ...


@Position.PACE
class SharedRateLimitLayer:
    """Wait for a permit of a shared limit before each attempt; a 429 pauses all processes.

    Position: that of `RateLimitLayer`. A permit taken for a call that a layer below refuses is
    given back.

    Args:
        limiter: A `RedisLimiter`, or one of this process.
        max_wait: Seconds a call may wait for its permit; None (default) waits as long as the
            caller's deadline allows.
        name: Service, used in events.
        listeners: Told of calls that were refused, and of pauses.
    """

    def __init__(
        self,
        limiter: ReservingLimiter,
        max_wait: float | None = None,
        *,
        name: str = "service",
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self._limiter = limiter
        self._max_wait = max_wait
        self._name = name
        self._listeners = listeners

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        permit = await self._permit()
        try:
            response = await inner.send(request)
        except CallRefusedError:
            permit.cancel()
            raise
        except Exception as exc:
            self._heed(exc, inner.semantics)
            raise
        self._heed(response, inner.semantics)
        return response

    async def _permit(self) -> Reservation:
        try:
            return await self._limiter.reserve(1.0, max_wait=within_deadline(self._max_wait))
        except CallRefusedError as exc:
            if self._listeners.has_audience:
                self._listeners(CallRefused(self._name, exc.code, exc.retry_after))
            raise

    def _heed(self, outcome: Res | Exception, semantics: Semantics[Req, Res]) -> None:
        if semantics.judge(outcome) is not Verdict.BUSY:
            return
        if wait := semantics.retry_after(outcome):
            self._limiter.pause(wait)
            self._listeners(LimiterPaused(self._name, wait))
