"""What a host is made of: its wire, what guards it, and a stack of layers for each model."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import httpx

from shared.infrastructure.balancing.answers import AnswerGuard
from shared.infrastructure.balancing.classify import note_silence
from shared.infrastructure.balancing.hosts.addressing import Addressing
from shared.infrastructure.balancing.hosts.admission import ADMISSION, Admission
from shared.infrastructure.balancing.hosts.config import HostPolicy, LLMHost
from shared.infrastructure.balancing.hosts.health import HostHealth
from shared.infrastructure.balancing.hosts.lane import FIRST_TOKEN_WINDOW, Lane
from shared.infrastructure.balancing.semantics import POOL, WireSemantics
from shared.infrastructure.http.credentials import ApiKeyLayer
from shared.infrastructure.http.layers import RateHeadersLayer
from shared.infrastructure.http.transport import HTTPLayer, Wire
from shared.infrastructure.http.wires import timeouts_of
from shared.infrastructure.resilience import (
    CircuitBreaker,
    Clock,
    EndpointGuard,
    Inner,
    Listeners,
    stack,
)
from shared.infrastructure.resilience.histogram import RotatingHistogram

# A probe may be a long stream; should it fall silent, the time limits of answers end it.
_PROBE_LEASE = 900.0


class HostStack:
    """The layers between a host's admission and its wire; those of all its models share the most.

    Args:
        config: What the user said about the host.
        policy: What guards it.
        transport: Does the exchanges; closed with it.
        ask_health: Raises if the host is not well.
        first_token_p99: What an adaptive limit of the first token goes by, by model.
        clock: Source of monotonic time.
        listeners: Told of what the layers decide.
        rng: Source of jitter.

    Attributes:
        addressing: Makes requests those of the host.
        guard: Rate limiter, bulkhead and health.
        health: How the host has been doing.
    """

    def __init__(
        self,
        config: LLMHost,
        policy: HostPolicy,
        transport: httpx.AsyncBaseTransport,
        ask_health: Callable[[], Awaitable[None]],
        *,
        first_token_p99: Callable[[str | None], float | None],
        clock: Clock,
        listeners: Listeners,
        rng: random.Random,
    ) -> None:
        name = config.name
        self.addressing = Addressing(config)
        self.health = HostHealth(
            name, ask_health, policy.health, clock=clock, rng=rng, listeners=listeners
        )
        self.guard = EndpointGuard(
            name,
            health=self.health,
            circuit_breaker=None,
            rate_limit=policy.rate_limit,
            bulkhead=policy.bulkhead,
            attempt_timeout=policy.timeout.attempt,
            clock=clock,
            listeners=listeners,
        )
        self._config = config
        self._policy = policy
        self._clock = clock
        self._listeners = listeners
        self._rng = rng
        self._timeouts = timeouts_of(policy.timeout)
        plain = Wire(transport, WireSemantics())
        self._wire = AnswerGuard(
            plain, policy.timeout, policy.answers, clock=clock, first_token_p99=first_token_p99
        )
        self._key: list[HTTPLayer] = []
        if config.api_key is not None:
            header, scheme = config.key_header or "Authorization", "Bearer"
            self._key.append(
                ApiKeyLayer(
                    config.api_key,
                    origin=None,  # whatever comes here is addressed to the host
                    header=header,
                    scheme="" if config.key_header else scheme,
                    name=name,
                    listeners=listeners,
                )
            )
        self._ask = stack(plain, *self._key, semantics=POOL)

    def make_lane(self, model: str | None) -> Lane:
        """Return the lane of a model, which has a circuit of its own."""
        breaker = self.make_breaker()
        adapts = self._policy.answers.first_token == "adaptive"  # noqa: S105 - a time limit
        send = self._fold(breaker)
        return Lane(
            send,
            self._fold(None) if breaker else send,
            breaker,
            self._policy.balance,
            RotatingHistogram(FIRST_TOKEN_WINDOW, clock=self._clock) if adapts else None,
        )

    def make_breaker(self) -> CircuitBreaker | None:
        """Return the circuit breaker of a lane, if lanes have one."""
        config = self._policy.circuit_breaker
        if config is None:
            return None
        lease = max(config.probe_lease, _PROBE_LEASE)
        return CircuitBreaker(
            self._config.name,
            config.model_copy(update={"probe_lease": lease}),
            clock=self._clock,
            rng=self._rng,
            listeners=self._listeners,
        )

    async def ask_health(self) -> httpx.Response:
        """Ask the host how it is, past everything that might refuse or count that."""
        request = self.addressing.check(self._config.health_path, self._timeouts)
        return await self._ask(request)

    async def aclose(self) -> None:
        """Stop the health checks and close every connection."""
        try:
            await self.health.stop()
        finally:
            await self._wire.aclose()

    def _fold(self, breaker: CircuitBreaker | None) -> Callable[..., Awaitable[httpx.Response]]:
        layers: list[HTTPLayer] = self.guard.layers_over(breaker)
        if self.guard.limiter is not None:
            layers.append(RateHeadersLayer(self.guard.limiter))
        return stack(self._wire.handle_async_request, *layers, *self._key, _depart, semantics=POOL)


async def _depart(
    request: httpx.Request, inner: Inner[httpx.Request, httpx.Response]
) -> httpx.Response:
    """Mark the attempt as sent; innermost, where no layer can refuse it any more."""
    admission: Admission = request.extensions[ADMISSION]
    admission.depart()
    try:
        return await inner.send(request)
    except asyncio.CancelledError as exc:
        note_silence(exc, admission.attempt)
        raise
