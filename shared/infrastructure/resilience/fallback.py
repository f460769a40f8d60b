"""Fallback: something to give the caller when the call itself came to nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic

from shared.infrastructure.resilience.errors import CallRefusedError, DeadlineExceededError
from shared.infrastructure.resilience.events import NO_LISTENERS, FallbackUsed, Listeners
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res, Semantics, Verdict

Fallback = Callable[[Req, Res | Exception], Awaitable[Res]]
"""Takes the request and the outcome it replaces: an error, or a response that is a failure."""


@Position.REPLACE
class FallbackLayer(Generic[Req, Res]):
    """Replace an outcome that is no use to the caller by what a fallback returns.

    Position: outermost, so that everything else has been tried, and breaker, health and statistics
    are told the truth. Below a deadline it is bound by that, and cannot replace its error.

    An error that the fallback raises is chained to the one it was called for. A response that is
    replaced is discarded once the fallback is done with it. A cancelled call has no fallback.

    Args:
        fallback: Called with the request and the outcome: a cache, a smaller model, a default.
        when: Says whether an outcome is to be replaced; by default one that failed, one that asks
            for patience, a call that we refused, and one that ran out of time.
        name: Service, used in events.
        listeners: Told of every use.
    """

    def __init__(
        self,
        fallback: Fallback[Req, Res],
        *,
        when: Callable[[Res | Exception], bool] | None = None,
        name: str = "service",
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self._fallback = fallback
        self._when = when
        self._name = name
        self._listeners = listeners
        self._used = self._failed = 0

    def describe(self) -> str:
        """Say in one line what is asked in place of the service."""
        fallback = getattr(self._fallback, "__qualname__", type(self._fallback).__name__)
        return f"FallbackLayer: {fallback}"

    def snapshot(self) -> dict[str, Any]:
        """Return how often the fallback was asked, and how often it failed too."""
        return {"used_count": self._used, "failed_count": self._failed}

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        try:
            response = await inner.send(request)
        except Exception as exc:
            if not self._wanted(exc, inner.semantics):
                raise
            # Inside the handler, so that whatever it raises is chained to `exc`.
            return await self._ask(request, exc, inner.semantics)
        if not self._wanted(response, inner.semantics):
            return response
        return await self._replace(request, response, inner.semantics)

    def _wanted(self, outcome: Res | Exception, semantics: Semantics[Any, Res]) -> bool:
        if self._when is not None:
            return self._when(outcome)
        if isinstance(outcome, (CallRefusedError, DeadlineExceededError)):
            return True
        return semantics.judge(outcome) in (Verdict.FAILED, Verdict.BUSY)

    async def _ask(
        self, request: Req, outcome: Res | Exception, semantics: Semantics[Any, Res]
    ) -> Res:
        self._used += 1
        if self._listeners.has_audience:
            cause = semantics.describe(request, outcome)
            self._listeners(FallbackUsed(self._name, cause))
        try:
            return await self._fallback(request, outcome)
        except Exception:
            self._failed += 1
            raise

    async def _replace(self, request: Req, response: Res, semantics: Semantics[Any, Res]) -> Res:
        try:
            kept = await self._ask(request, response, semantics)
        except BaseException:
            await semantics.discard(response)
            raise
        if kept is not response:
            await semantics.discard(response)
        return kept
