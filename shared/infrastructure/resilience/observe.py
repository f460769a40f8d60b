"""Counts and times of the calls a caller made, however many attempts each of them took."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import CallRefusedError
from shared.infrastructure.resilience.histogram import percentile
from shared.infrastructure.resilience.layer import Inner, Req, Res, Verdict

# Bound once: both are read on every call.
_OK, _VOID = Verdict.OK, Verdict.VOID
_KEPT = 1000
_PERCENTS = (50, 90, 95, 99)


class CallStats:
    """Running totals, and the latencies of the last 1000 calls; every update is O(1)."""

    __slots__ = (
        *("_failures", "_latest", "_total_time"),
        *("cancelled", "errors", "in_flight", "ok", "refused"),
    )

    def __init__(self) -> None:
        self.in_flight = 0
        self.ok = 0
        self.errors = 0
        self.refused = 0
        self.cancelled = 0
        self._total_time = 0.0
        self._latest: deque[float] = deque(maxlen=_KEPT)
        self._failures: Counter[str] = Counter()

    @property
    def requests(self) -> int:
        """Calls that have ended with an answer, an error or a refusal; cancelled ones excluded."""
        return self.ok + self.errors

    def settle(self, ok: bool, elapsed: float, failure: str = "") -> None:
        """Count one call that has ended, the seconds it took, and the kind of its failure."""
        if ok:
            self.ok += 1
        else:
            self.errors += 1
            if failure:
                self._failures[str(failure)] += 1  # one of an enum is no plain key
        self._total_time += elapsed
        self._latest.append(elapsed)

    def snapshot(self) -> dict[str, Any]:
        """Return counts, `error_rate` (0.0 to 1.0) and seconds as plain JSON types.

        Percentiles are those of the last 1000 calls, None before the first.
        """
        requests = self.requests
        ordered = sorted(self._latest)
        return {
            "request_count": requests,
            "error_count": self.errors,
            "refused_count": self.refused,
            "cancelled_count": self.cancelled,
            "in_flight": self.in_flight,
            "error_rate": self.errors / requests if requests else 0.0,
            "average_response_time": self._total_time / requests if requests else 0.0,
            **{
                f"response_time_p{percent}": percentile(ordered, percent) if ordered else None
                for percent in _PERCENTS
            },
            "failures": dict(self._failures.most_common()),
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
            stats.settle(False, now() - began, getattr(exc, "code", type(exc).__name__))
            raise
        except BaseException:
            stats.in_flight -= 1
            stats.cancelled += 1
            raise

        def over(verdict: Verdict) -> None:
            stats.in_flight -= 1
            if verdict is _VOID:
                stats.cancelled += 1
            elif verdict is _OK:
                stats.settle(True, now() - began)
            else:
                stats.settle(False, now() - began, _failure(request, response, inner))

        return inner.semantics.watch(response, over)


def _failure(request: Req, response: Res, inner: Inner[Req, Res]) -> str:
    if inner.semantics.judge(response) is _OK:
        return "body"  # its head was fine
    return inner.semantics.describe(request, response)
