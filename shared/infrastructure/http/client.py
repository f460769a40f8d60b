"""`EnhancedHTTPClient`: an httpx client that does not fall over with the service it calls."""

from __future__ import annotations

import random
import secrets
import ssl
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from shared.infrastructure.http.config import ConnectionPoolConfig, TimeoutConfig
from shared.infrastructure.http.errors import UpstreamError
from shared.infrastructure.http.semantics import HTTP
from shared.infrastructure.http.transport import BUFFERED, HTTPXLayer, ResilientTransport
from shared.infrastructure.resilience import (
    MONOTONIC,
    AdaptiveBulkheadConfig,
    AdaptiveRateConfig,
    BulkheadConfig,
    CallStats,
    CircuitBreakerConfig,
    Clock,
    ConfigurationError,
    DeadlineLayer,
    EndpointGuard,
    HealthConfig,
    HealthMonitor,
    Listener,
    Listeners,
    ObserveLayer,
    RateLimitConfig,
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
    RetryLayer,
    Verdict,
)
from shared.infrastructure.resilience.guard import status_of
from shared.infrastructure.resilience.retry_budget import budget_of
from shared.infrastructure.resilience.trace import trace_call

_POOL = ConnectionPoolConfig()
_TIMEOUT = TimeoutConfig()
_RETRY = RetryConfig()
_BUDGET = RetryBudgetConfig()
_BREAKER = CircuitBreakerConfig()
_UNSAFE = frozenset({"POST", "PATCH"})

TRACE = "trace"
"""Response extension: the `Trace` of the call."""


class EnhancedHTTPClient(httpx.AsyncClient):
    """An `httpx.AsyncClient` for one service, with everything between it and trouble.

    Use it as one: `async with EnhancedHTTPClient("orders", "https://orders") as client: await
    client.post("/v1/orders", json=order)`. 4xx answers are returned as they are; 5xx answers,
    timeouts and connection errors are retried with backoff and jitter, and open the breaker when
    they go on. A POST or PATCH gets an `Idempotency-Key` that stays the same over its attempts.

    Args:
        service_name: Name in errors, events and status.
        base_url: Origin of the service; requests to any other origin are refused, since they would
            carry this client's credentials there.
        pool_config: Connection pool.
        retry_config: Retries; None switches them off.
        retry_budget: Bounds the retries of all calls together; a `RetryBudget` may be shared with
            other clients of the same origin; None is no bound.
        timeout_config: Time limits.
        circuit_breaker_config: Breaker; None switches it off.
        rate_limit_config: Rate limit; None (default) is no limit.
        bulkhead_config: Bound on calls in flight; None (default) is no bound but the pool's.
        health_config: When the service counts as degraded or unhealthy.
        health_check_path: Path asked every `health_config.interval` seconds while the client is
            open; None (default) leaves health to ordinary traffic.
        headers: Sent with every request.
        auth: As for httpx.
        http2: Speak HTTP/2 where the service does.
        verify: TLS verification: True, or a context of your own.
        proxy: Proxy URL; the proxy sits below all layers.
        transport: Transport to use instead of httpx's own; it brings its own pool, TLS and proxy.
        idempotency_keys: False sends none, and a POST is then retried only if it was never sent.
        listeners: Told of what the layers decide.
        clock: Source of monotonic time.
        rng: Source of jitter.

    Raises:
        CallRefusedError: We refused: breaker open, no permit in time, no slot.
        UpstreamError: The exchange failed; also the matching httpx class.
        DeadlineExceededError: `timeout_config.total` is over.
    """

    def __init__(
        self,
        service_name: str,
        base_url: str = "",
        pool_config: ConnectionPoolConfig = _POOL,
        retry_config: RetryConfig | None = _RETRY,
        timeout_config: TimeoutConfig = _TIMEOUT,
        circuit_breaker_config: CircuitBreakerConfig | None = _BREAKER,
        rate_limit_config: RateLimitConfig | AdaptiveRateConfig | None = None,
        *,
        retry_budget: RetryBudget | RetryBudgetConfig | None = _BUDGET,
        bulkhead_config: BulkheadConfig | AdaptiveBulkheadConfig | None = None,
        health_config: HealthConfig | None = None,
        health_check_path: str | None = None,
        headers: Mapping[str, str] | None = None,
        auth: httpx.Auth | tuple[str, str] | None = None,
        http2: bool = False,
        verify: ssl.SSLContext | bool = True,
        proxy: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        idempotency_keys: bool = True,
        listeners: Sequence[Listener] = (),
        clock: Clock = MONOTONIC,
        rng: random.Random | None = None,
    ) -> None:
        if not service_name:
            raise ConfigurationError("service_name must not be empty")
        self.service_name = service_name
        heard = Listeners(listeners)
        self._stats = CallStats()
        self._health = HealthMonitor(
            service_name,
            self._ask_health if health_check_path else None,
            health_config,
            clock=clock,
            listeners=heard,
        )
        self._health_check_path = health_check_path
        self._guard = EndpointGuard(
            service_name,
            health=self._health,
            circuit_breaker=circuit_breaker_config,
            rate_limit=rate_limit_config,
            bulkhead=bulkhead_config,
            attempt_timeout=timeout_config.attempt,
            clock=clock,
            listeners=heard,
        )
        self._idempotency_keys = idempotency_keys and retry_config is not None
        self._clock = clock
        self._budget = budget_of(retry_budget, clock=clock) if retry_config else None
        layers: list[HTTPXLayer] = [ObserveLayer(self._stats, clock=clock)]
        if timeout_config.total is not None:
            layers.append(
                DeadlineLayer(timeout_config.total, name=service_name, clock=clock, listeners=heard)
            )
        if retry_config is not None:
            retry = RetryLayer(
                retry_config,
                name=service_name,
                budget=self._budget,
                clock=clock,
                rng=rng,
                listeners=heard,
            )
            layers.append(retry)
        inner = transport or native_transport(pool_config, http2=http2, verify=verify, proxy=proxy)
        self._resilient = ResilientTransport(inner, *layers, *self._guard.layers)
        super().__init__(
            base_url=base_url,
            headers=headers,
            auth=auth,
            timeout=native_timeout(timeout_config),
            transport=self._resilient,
            trust_env=False,
        )

    def get_status(self) -> dict[str, Any]:
        """Return a snapshot of plain JSON types; times are seconds, rates 0.0 to 1.0.

        Keys: `service_name`, `base_url`, `request_count`, `error_count`, `error_rate`,
        `average_response_time`, `in_flight`, `refused_count`, `cancelled_count`,
        `circuit_breaker`, `rate_limiter`, `bulkhead`, `health`, `retry_budget`.
        """
        return {
            "service_name": self.service_name,
            "base_url": str(self.base_url),
            **self._stats.snapshot(),
            **self._guard.snapshot(),
            "retry_budget": status_of(self._budget),
        }

    async def check_health(self) -> dict[str, Any]:
        """Ask the health check path once, if there is one, and return the health snapshot."""
        await self._health.check()
        return self._health.snapshot()

    def build_request(self, *args: Any, **kwargs: Any) -> httpx.Request:
        """Build a request as httpx does, but only for this client's own origin."""
        request = super().build_request(*args, **kwargs)
        if self.base_url.host and _origin(request.url) != _origin(self.base_url):
            raise ConfigurationError(
                f"this client is for {self.base_url}: a request to {request.url.host} would carry "
                "its headers and credentials there; use a client of its own for that service"
            )
        if self._idempotency_keys and request.method in _UNSAFE:
            request.headers.setdefault("Idempotency-Key", secrets.token_hex(16))
        return request

    async def send(self, request: httpx.Request, **kwargs: Any) -> httpx.Response:
        """Send as httpx does; a response that is not streamed is read inside its attempt."""
        buffered = not kwargs.get("stream", False)
        request.extensions = {**request.extensions, BUFFERED: buffered}
        with trace_call(clock=self._clock) as trace:
            response = await super().send(request, **kwargs)
        response.extensions = {**response.extensions, TRACE: trace}
        return response

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._health.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._health.stop()
        await super().__aexit__(exc_type, exc_value, traceback)

    async def aclose(self) -> None:
        """Stop the health checks and close every connection."""
        await self._health.stop()
        await super().aclose()

    async def _ask_health(self) -> None:
        # Straight to the wire: a check must neither be refused by the breaker nor counted in it.
        request = self.build_request("GET", self._health_check_path or "/")
        request.extensions[BUFFERED] = True
        response = await self._resilient.wire(request)
        if HTTP.judge(response) is Verdict.FAILED:
            raise UpstreamError(f"health check answered {response.status_code}")


def native_transport(
    pool: ConnectionPoolConfig,
    *,
    http2: bool = False,
    verify: ssl.SSLContext | bool = True,
    proxy: str | None = None,
) -> httpx.AsyncHTTPTransport:
    """Return httpx's own transport with our bounds."""
    if verify is False:
        raise ConfigurationError("verify=False would accept any server; pass an SSLContext instead")
    limits = httpx.Limits(
        max_connections=pool.max_connections,
        max_keepalive_connections=pool.max_keepalive_connections,
        keepalive_expiry=pool.keepalive_expiry,
    )
    return httpx.AsyncHTTPTransport(
        verify=verify, http2=http2, limits=limits, proxy=proxy, trust_env=False
    )


def native_timeout(config: TimeoutConfig) -> httpx.Timeout:
    """Return the four limits httpx itself enforces."""
    return httpx.Timeout(
        connect=config.connect, read=config.read, write=config.write, pool=config.pool
    )


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
