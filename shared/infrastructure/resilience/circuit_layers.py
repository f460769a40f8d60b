"""A circuit breaker in a stack: refuse above the queues, count below them, over one breaker."""

from __future__ import annotations

from typing import Any

from shared.infrastructure.resilience.circuit_breaker import CircuitBreaker
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res, Semantics, Verdict


@Position.REFUSE
class CircuitGate:
    """Refuse a call while the circuit is open, before it queues for anything.

    Position: above rate limiter and bulkhead, so that nobody waits behind an open circuit. It
    takes no permit: that is for `CircuitBreakerLayer`, below the queues, over the same breaker.
    """

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        if self._breaker.shared_permit is None:
            self._breaker.check()
        return await inner.send(request)


@Position.COUNT
class CircuitBreakerLayer:
    """Count every attempt's outcome, and hold a permit until its answer is over.

    Position: below retry, so that it counts attempts; below the queues, so that no half-open probe
    is spent on waiting; above the attempt timeout, so that it sees one.
    """

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self._obeys = breaker.config.obey_retry_after

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        permit = self._breaker.shared_permit or self._breaker.admit()
        try:
            response = await inner.send(request)
        except BaseException as exc:
            permit.settle(inner.semantics.judge(exc))
            raise
        if self._obeys:
            self._obey(response, inner.semantics)
        return inner.semantics.watch(response, permit.settle)

    def _obey(self, response: Res, semantics: Semantics[Any, Res]) -> None:
        wait = semantics.retry_after(response)
        if wait and semantics.judge(response) is Verdict.FAILED:
            self._breaker.open_for(wait)
