"""One adapter for each circuit breaker: five failures open it, one probe decides."""

# ruff: noqa: PLC0415 - a library that is missing must not keep the others from running

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx

from shared.infrastructure.http import ResilientTransport
from shared.infrastructure.resilience import (
    PLAIN_CALL,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerLayer,
    SystemClock,
    stack,
)

Call = Callable[[], Awaitable[object]]
THRESHOLD = 5
PROBE_LEASE = 1.0


@dataclass(frozen=True)
class Breaker:
    """A breaker as the scenarios see it."""

    call: Callable[[Call], Awaitable[Any]]
    read_state: Callable[[], str]
    own_transport: Callable[[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport] | None = None

    @property
    def state(self) -> str:
        return _STATES[self.read_state().lower().replace("_", "-")]

    def transport(self, inner: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
        """Guard `inner` by the library's own transport, or by the obvious one around a call."""
        return self.own_transport(inner) if self.own_transport else _Guarded(self.call, inner)


class _Guarded(httpx.AsyncBaseTransport):
    def __init__(
        self, call: Callable[[Call], Awaitable[Any]], inner: httpx.AsyncBaseTransport
    ) -> None:
        self._call = call
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._call(lambda: self._inner.handle_async_request(request))


_STATES = {
    **dict.fromkeys(("closed", "working"), "closed"),
    **dict.fromkeys(("open", "opened", "failing"), "open"),
    **dict.fromkeys(("half-open", "half-opened", "recovering"), "half-open"),
}


async def morgan(open_for: float) -> Breaker:
    config = CircuitBreakerConfig(
        failure_threshold=THRESHOLD,
        success_threshold=1,
        timeout=open_for,
        probe_lease=PROBE_LEASE,
    )
    breaker = CircuitBreaker(config=config, clock=SystemClock())

    async def wire(function: Call) -> object:
        return await function()

    layer = CircuitBreakerLayer(breaker)
    return Breaker(
        stack(wire, layer, semantics=PLAIN_CALL),
        lambda: breaker.state.value,
        lambda inner: ResilientTransport(inner, layer),
    )


async def aiobreaker(open_for: float) -> Breaker:
    import aiobreaker as peer

    breaker = peer.CircuitBreaker(THRESHOLD, timedelta(seconds=open_for))
    return Breaker(breaker.call_async, lambda: breaker.current_state.name)


async def purgatory(open_for: float) -> Breaker:
    import purgatory as peer

    factory = peer.AsyncCircuitBreakerFactory(THRESHOLD, open_for)
    breaker = await factory.get_breaker("service")

    async def call(function: Call) -> object:
        async with await factory.get_breaker("service"):
            return await function()

    return Breaker(call, lambda: breaker.context.state)


async def circuitbreaker(open_for: float) -> Breaker:
    import circuitbreaker as peer

    breaker = peer.CircuitBreaker(THRESHOLD, open_for, name="service")

    async def call(function: Call) -> object:
        return await breaker.decorate(_as_coroutine_function(function))()

    return Breaker(call, lambda: breaker.state)


async def pybreaker(open_for: float) -> Breaker:
    import pybreaker as peer

    breaker = peer.CircuitBreaker(THRESHOLD, open_for)

    async def call(function: Call) -> object:
        # Its decorator counts nothing of a coroutine function, and `call_async` is for Tornado.
        with breaker.calling():
            return await function()

    return Breaker(call, lambda: breaker.current_state)


async def hyx(open_for: float) -> Breaker:
    from hyx.circuitbreaker import consecutive_breaker

    breaker = consecutive_breaker(
        failure_threshold=THRESHOLD, recovery_time_secs=open_for, recovery_threshold=1
    )

    async def call(function: Call) -> object:
        async with breaker:
            return await function()

    return Breaker(call, lambda: breaker.state.name)


async def interlock(open_for: float) -> Breaker:
    import interlock as peer
    from interlock.integrations.httpx import AsyncCircuitBreakerTransport

    config = peer.Config(
        failure_rate_threshold=1.0,
        minimum_number_of_calls=THRESHOLD,
        permitted_calls_in_half_open=1,
        wait_duration_in_open=open_for,
    )
    breaker = peer.CircuitBreaker(name="service", config=config)
    return Breaker(
        breaker.call_async,
        lambda: breaker.state.name,
        lambda inner: AsyncCircuitBreakerTransport(inner, config=config),
    )


async def nopanic(open_for: float) -> Breaker:
    import nopanic as peer

    breaker = peer.circuit_breaker(
        failure_threshold=1.0,
        min_calls=THRESHOLD,
        reset_timeout=open_for,
        clock=lambda: time.monotonic(),  # noqa: PLW0108 - looked up late, to see virtual time
    )

    async def call(function: Call) -> object:
        async with breaker.guard():
            return await function()

    return Breaker(call, lambda: breaker.state)


def _as_coroutine_function(function: Call) -> Callable[[], Any]:
    async def call() -> object:
        return await function()

    return call


BREAKERS = {
    "ours": morgan,
    "aiobreaker": aiobreaker,
    "purgatory": purgatory,
    "circuitbreaker": circuitbreaker,
    "pybreaker": pybreaker,
    "hyx": hyx,
    "interlock-cb": interlock,
    "nopanic": nopanic,
}
PACKAGES = {"interlock-cb": "interlock", "hyx": "hyx.circuitbreaker"}
