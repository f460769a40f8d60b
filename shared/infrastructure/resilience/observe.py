"""Counts and times of the calls a caller made, however many attempts each of them took."""

from __future__ import annotations

from typing import Any

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import CallRefusedError
from shared.infrastructure.resilience.layer import Inner, Req, Res, Verdict

# Bound once: both are read on every call.
_OK, _VOID = Verdict.OK, Verdict.VOID


class CallStats:
    """Running totals; every update is O(1)."""

    __slots__ = ("_total_time", "cancelled", "errors", "in_flight", "ok", "refused")

    def __init__(self) -> None:
        self.in_flight = 0
        self.ok = 0
        self.errors = 0
        self.refused = 0
        self.cancelled = 0
        self._total_time = 0.0

    @property
    def requests(self) -> int:
        """Calls that have ended with an answer, an error or a refusal; cancelled ones excluded."""
        return self.ok + self.errors

    def settle(self, ok: bool, elapsed: float) -> None:
        """Count one call that has ended, and the seconds it took."""
        if ok:
            self.ok += 1
        else:
            self.errors += 1
        self._total_time += elapsed

    def snapshot(self) -> dict[str, Any]:
        """Return counts, `error_rate` (0.0 to 1.0) and mean seconds as plain JSON types."""
        requests = self.requests
        return {
            "request_count": requests,
            "error_count": self.errors,
            "refused_count": self.refused,
            "cancelled_count": self.cancelled,
            "in_flight": self.in_flight,
            "error_rate": self.errors / requests if requests else 0.0,
            "average_response_time": self._total_time / requests if requests else 0.0,
        }


class ObserveLayer:
    """Count what the caller saw: one entry per call, its time up to the end of the answer.

    Position: outermost.
    """

    def __init__(self, stats: CallStats, *, clock: Clock = MONOTONIC) -> None:
        self._stats = stats
        self._now = clock.now

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        stats, now = self._stats, self._now
        began = now()
        stats.in_flight += 1
        try:
            response = await inner.send(request)
        except Exception as exc:
            stats.in_flight -= 1
            stats.refused += isinstance(exc, CallRefusedError)
            stats.settle(False, now() - began)
            raise
        except BaseException:
            stats.in_flight -= 1
            stats.cancelled += 1
            raise

        def over(verdict: Verdict) -> None:
            stats.in_flight -= 1
            if verdict is _VOID:
                stats.cancelled += 1
            else:
                stats.settle(verdict is _OK, now() - began)

        return inner.semantics.watch(response, over)
