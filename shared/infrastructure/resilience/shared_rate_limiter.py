"""The layer for a rate limit that is shared with other processes; see `limits.redis_limiter`."""

from __future__ import annotations

from typing import Protocol

from shared.infrastructure.resilience.errors import CallRefusedError
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
    """

    def __init__(self, limiter: ReservingLimiter, max_wait: float | None = None) -> None:
        self._limiter = limiter
        self._max_wait = max_wait

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        permit = await self._limiter.reserve(1.0, max_wait=within_deadline(self._max_wait))
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

    def _heed(self, outcome: Res | Exception, semantics: Semantics[Req, Res]) -> None:
        if semantics.judge(outcome) is Verdict.BUSY:
            self._limiter.pause(semantics.retry_after(outcome) or 0.0)
