"""The hosts of a pool: what the user says about one, and what becomes of it at run time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, ClassVar

import httpx
from pydantic import ConfigDict, SecretStr

from shared.infrastructure.balancing.answers import AnswerGuard
from shared.infrastructure.balancing.route import POOL, STREAMED, WireSemantics, route_of
from shared.infrastructure.http import TimeoutConfig, UpstreamError
from shared.infrastructure.http.extensions import BUFFERED
from shared.infrastructure.http.layers import RateHeadersLayer
from shared.infrastructure.http.transport import HTTPLayer, Wire
from shared.infrastructure.http.wires import timeouts_of
from shared.infrastructure.resilience import (
    AdaptiveBulkheadConfig,
    AdaptiveRateConfig,
    BulkheadConfig,
    CallRefusedError,
    CallStats,
    CircuitBreakerConfig,
    CircuitState,
    Clock,
    ConfigurationError,
    EndpointGuard,
    HealthConfig,
    HealthMonitor,
    Inner,
    Listeners,
    RateLimitConfig,
    Verdict,
    stack,
)

_AT_HAND, _ONCE = WireSemantics(may_resend=True), WireSemantics(may_resend=False)
# Where other services than those with bearer tokens look for a caller's credentials.
_OTHER_CREDENTIALS = ("x-api-key", "api-key")


@dataclass(frozen=True)
class LLMHost:
    """One host of a pool.

    Attributes:
        name: Unique name in errors, events and metrics.
        url: Where it is, `http://` or `https://`; a path in it goes before that of each request.
        weight: Its share of the work relative to the others; 1; above 0.
        api_key: Sent as bearer token, in place of any credentials of the caller; None sends the
            caller's.
        headers: Sent with every request to this host.
        health_path: Asked by active health checks; "/health".

    Raises:
        ConfigurationError: A name is empty, a URL is not one of a host, or a weight not above 0.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    url: str
    weight: float = 1.0
    _: KW_ONLY
    api_key: SecretStr | str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    health_path: str = "/health"

    def __post_init__(self) -> None:
        if isinstance(self.api_key, str):  # wherever the host goes from here, its key stays hidden
            object.__setattr__(self, "api_key", SecretStr(self.api_key))
        if not self.name:
            raise ConfigurationError("a host needs a name")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ConfigurationError(f"weight of {self.name} must be above 0, not {self.weight}")
        if not self.health_path.startswith("/"):
            raise ConfigurationError(f"health_path of {self.name} must begin with /")
        # The URL is not repeated in a message: a wrong one may well hold a password.
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL:
            raise ConfigurationError(f"url of {self.name} is not valid") from None
        if url.scheme not in {"http", "https"} or not url.host:
            raise ConfigurationError(f"url of {self.name} must begin with http:// or https://")
        if url.userinfo or url.query or url.fragment:
            raise ConfigurationError(f"url of {self.name} must have no user, query or fragment")


@dataclass(frozen=True)
class HostPolicy:
    """What guards each host of a pool; None leaves that layer out."""

    timeout: TimeoutConfig
    circuit_breaker: CircuitBreakerConfig | None
    rate_limit: RateLimitConfig | AdaptiveRateConfig | None
    bulkhead: BulkheadConfig | AdaptiveBulkheadConfig | None
    health: HealthConfig | None


class Host:
    """A host at run time: its own stack of layers, its load and its counters.

    Attributes:
        config: What the user said about it.
        name: Its name.
        weight: Its weight.
        enabled: Whether it may be given new calls.
        load: Calls it has been given and that are not over, relative to its weight.
        credit: What smooth weighted round robin owes it.
        throttled_until: Instant before which it asked not to be called.
        guard: What guards it.
    """

    def __init__(
        self,
        config: LLMHost,
        policy: HostPolicy,
        transport: httpx.AsyncBaseTransport,
        *,
        clock: Clock,
        listeners: Listeners,
    ) -> None:
        self.config = config
        self.name = config.name
        self.weight = config.weight
        self.enabled = True
        self.load = 0.0
        self.credit = 0.0
        self.throttled_until = -math.inf
        self.guard = EndpointGuard(
            config.name,
            health=HealthMonitor(
                config.name, self._ask_health, policy.health, clock=clock, listeners=listeners
            ),
            circuit_breaker=policy.circuit_breaker,
            rate_limit=policy.rate_limit,
            bulkhead=policy.bulkhead,
            attempt_timeout=policy.timeout.attempt,
            clock=clock,
            listeners=listeners,
        )
        self._clock = clock
        self._stats = CallStats()
        self._url = httpx.URL(config.url)
        self._prefix = self._url.raw_path.rstrip(b"/")
        self._headers = _own_headers(config)
        self._timeout = timeouts_of(policy.timeout)
        self._wire = Wire(AnswerGuard(Wire(transport, _AT_HAND)), _ONCE)
        layers: list[HTTPLayer] = [self._account, *self.guard.layers]
        if self.guard.limiter is not None:
            layers.append(RateHeadersLayer(self.guard.limiter))
        self._send = stack(self._wire, *layers, self._depart, semantics=POOL)

    @property
    def health(self) -> HealthMonitor:
        """How it has been doing."""
        return self.guard.health

    @property
    def is_open(self) -> bool:
        """Whether its circuit breaker refuses every call."""
        breaker = self.guard.breaker
        return breaker is not None and breaker.refuses_all

    @property
    def open_for(self) -> float:
        """Seconds until its circuit lets a probe through."""
        breaker = self.guard.breaker
        seconds: float | None = breaker.snapshot()["retry_after"] if breaker else None
        return seconds or 0.0

    def is_suspect(self, now: float) -> bool:
        """Whether there may be a reason at instant `now` not to call it."""
        breaker = self.guard.breaker
        closed = breaker is None or breaker.state is CircuitState.CLOSED
        return not closed or self.throttled_until > now

    @property
    def is_full(self) -> bool:
        """Whether a call given to it would have to wait in line."""
        bulkhead, limiter = self.guard.bulkhead, self.guard.limiter
        if bulkhead is not None and self._stats.in_flight >= bulkhead.config.max_concurrent:
            return True
        return limiter is not None and limiter.utilization > 1.0 - 1.0 / limiter.capacity

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request that was made for the pool to this host."""
        own = self._readdress(request)
        response = await self._send(own)
        response.request = own
        return response

    def snapshot(self) -> dict[str, Any]:
        """Return counters, load and the state of every guard as plain JSON types."""
        return {
            "url": self.config.url,
            "weight": self.weight,
            "enabled": self.enabled,
            "throttled_for": max(0.0, self.throttled_until - self._clock.now()),
            **self._stats.snapshot(),
            **self.guard.snapshot(),
        }

    async def aclose(self) -> None:
        """Stop the health checks and close every connection."""
        await self.health.stop()
        await self._wire.aclose()

    async def _account(
        self, request: httpx.Request, inner: Inner[httpx.Request, httpx.Response]
    ) -> httpx.Response:
        """Count a call and what became of it; outermost, so that the load includes its line."""
        began = self._clock.now()
        self._change_load(+1)
        try:
            response = await inner.send(request)
        except BaseException as exc:
            self._stats.refused += isinstance(exc, CallRefusedError)
            self._settle(began, inner.semantics.judge(exc))
            raise
        return inner.semantics.watch(response, partial(self._settle, began))

    async def _depart(
        self, request: httpx.Request, inner: Inner[httpx.Request, httpx.Response]
    ) -> httpx.Response:
        """Mark the attempt as sent; innermost, where no layer can refuse it any more."""
        route_of(request).depart(self.name)
        return await inner.send(request)

    def _settle(self, began: float, verdict: Verdict) -> None:
        self._change_load(-1)
        if verdict is not Verdict.VOID:
            ok = verdict is not Verdict.FAILED
            self._stats.settle(ok, self._clock.now() - began)

    def _change_load(self, change: int) -> None:
        self._stats.in_flight += change
        self.load = self._stats.in_flight / self.weight

    def _readdress(self, request: httpx.Request) -> httpx.Request:
        headers = request.headers.copy()
        if self.config.api_key is not None:
            for name in _OTHER_CREDENTIALS:
                headers.pop(name, None)
        headers.update(self._headers)
        if request.extensions.get(STREAMED):
            # The end of a stream has to be seen, and a compressed one would hide it.
            headers["Accept-Encoding"] = "identity"
        return httpx.Request(
            request.method,
            self._url.copy_with(raw_path=self._prefix + request.url.raw_path),
            headers=headers,
            stream=request.stream,
            extensions=request.extensions,
        )

    async def _ask_health(self) -> None:
        # Straight to the wire: a check must neither be refused by the breaker nor counted in it.
        request = httpx.Request(
            "GET",
            self._url.copy_with(raw_path=self._prefix + self.config.health_path.encode()),
            headers=self._headers,
            extensions={"timeout": self._timeout, BUFFERED: True},
        )
        response = await self._wire(request)
        if POOL.judge(response) is Verdict.FAILED:
            raise UpstreamError(f"health check answered {response.status_code}", host=self.name)


def _own_headers(config: LLMHost) -> dict[str, str]:
    headers = {"Host": httpx.URL(config.url).netloc.decode("ascii"), **config.headers}
    if config.api_key is not None:
        key = config.api_key
        token = key.get_secret_value() if isinstance(key, SecretStr) else key
        headers["Authorization"] = f"Bearer {token}"
    return headers
