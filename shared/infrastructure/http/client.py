"""The client for one service, written once for httpx and httpx2; use `EnhancedHTTPClient`."""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, ClassVar, Self

from shared.infrastructure.http.bodies import Body, body_of, files_are_replayable
from shared.infrastructure.http.config import ConnectionPoolConfig, TimeoutConfig
from shared.infrastructure.http.decoding import ResponseLimits
from shared.infrastructure.http.errors import UpstreamError
from shared.infrastructure.http.extensions import BUFFERED, REPLAYABLE, TRACE
from shared.infrastructure.http.layers import (
    CheckLayer,
    IdempotencyKeyLayer,
    OriginLayer,
    RateHeadersLayer,
)
from shared.infrastructure.http.library import HTTPX, AsyncClient, HTTPLibrary
from shared.infrastructure.http.report import AttemptCount, RetryCount, explained, pool_status
from shared.infrastructure.http.secrecy import public_url
from shared.infrastructure.http.semantics import HTTP
from shared.infrastructure.http.transport import HTTPLayer
from shared.infrastructure.http.wires import chosen_wire, timeouts_of
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
    HedgeConfig,
    HedgeLayer,
    Listener,
    Listeners,
    ObserveLayer,
    RateLimitConfig,
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
    RetryLayer,
    Verdict,
    deadline,
    stack,
)
from shared.infrastructure.resilience.guard import status_of
from shared.infrastructure.resilience.retry_budget import budget_of
from shared.infrastructure.resilience.trace import trace_call

_POOL = ConnectionPoolConfig()
_TIMEOUT = TimeoutConfig()
_RETRY = RetryConfig()
_BUDGET = RetryBudgetConfig()
_BREAKER = CircuitBreakerConfig()
_LIMITS = ResponseLimits()
_MAX_URLS = 1000
# Seconds by which the deadline over several hops is later than that of each.
_AFTER = 0.01
_PASSED_ON = frozenset(
    {
        *("cookies", "default_encoding", "event_hooks"),
        *("follow_redirects", "max_redirects", "params"),
    }
)


class ServiceClient(AsyncClient):
    """A client of the HTTP library for one service, with everything between it and trouble.

    Use it as one: `async with EnhancedHTTPClient("orders", "https://orders") as client: await
    client.post("/v1/orders", json=order)`. 4xx answers are returned as they are; 5xx answers,
    timeouts and connection errors are retried with backoff and jitter, and open the breaker when
    they go on. A POST or PATCH gets an `Idempotency-Key` that stays the same over its attempts.

    `content` may also be a file, a path, any iterable of bytes or a function that returns one: see
    `bodies.Content`.

    Args:
        service_name: Name in errors, events and status.
        base_url: Origin of the service; requests and redirects to any other origin are refused,
            since they would carry this client's credentials there.
        pool_config: Connection pool.
        retry_config: Retries; None switches them off.
        retry_budget: Bounds the retries and hedges of all calls together; a `RetryBudget` may be
            shared with other clients of the same origin; None is no bound.
        timeout_config: Time limits.
        circuit_breaker_config: Breaker; None switches it off.
        rate_limit_config: Rate limit; None (default) is no limit. It also follows what the headers
            of answers say about quotas.
        bulkhead_config: Bound on calls in flight; None (default) is no bound but the pool's.
        hedge_config: Send a late request again; None (default) never does. It takes the place of
            retries: pass `retry_config=None`.
        health_config: When the service counts as degraded or unhealthy.
        health_check_path: Path asked every `health_config.interval` seconds while the client is
            open, with `layers` but without `auth`; None (default) leaves health to ordinary
            traffic.
        limits: Bounds of a response.
        check_response: Called with each answer that is read, inside its attempt; an `UpstreamError`
            it raises fails the attempt. `json_answer` is one.
        deadline_header: Name of a header that tells the service how many milliseconds are left of
            the deadline in force; None (default) sends none.
        headers: Sent with every request.
        auth: As for the library.
        layers: Layers of your own around each attempt, outermost first, right above the wire: an
            `ApiKeyLayer`, a `SigningLayer`.
        http2: Speak HTTP/2 where the service does.
        verify: TLS verification: True, or a context of your own such as `TLSConfig(...).context()`.
        check_address: Called with each IP address of the service before it is connected to; what
            it raises ends the request: `public_addresses_only`.
        proxy: Proxy URL; the proxy sits below all layers.
        transport: Transport to use instead; it brings its own pool, TLS and proxy.
        idempotency_keys: False sends none, and a POST is then retried only if it was never sent.
        listeners: Told of what the layers decide.
        clock: Source of monotonic time.
        rng: Source of jitter.
        options: `cookies`, `params`, `event_hooks`, `follow_redirects`, `max_redirects` and
            `default_encoding`, as for the library.

    Raises:
        CallRefusedError: We refused: breaker open, no permit in time, no slot.
        UpstreamError: The exchange failed; also the matching class of the library.
        DeadlineExceededError: `timeout_config.total` is over.
        CrossOriginError: The URL, or that of a redirect, is of another origin.
    """

    library: ClassVar[HTTPLibrary] = HTTPX
    wire_class: ClassVar[Any]
    transport_class: ClassVar[Any]

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
        hedge_config: HedgeConfig | None = None,
        health_config: HealthConfig | None = None,
        health_check_path: str | None = None,
        limits: ResponseLimits = _LIMITS,
        check_response: Callable[[Any], None] | None = None,
        deadline_header: str | None = None,
        headers: Mapping[str, str] | None = None,
        auth: Any = None,
        layers: Sequence[HTTPLayer] = (),
        http2: bool = False,
        verify: ssl.SSLContext | bool = True,
        check_address: Callable[[str], None] | None = None,
        proxy: str | None = None,
        transport: Any = None,
        idempotency_keys: bool = True,
        listeners: Sequence[Listener] = (),
        clock: Clock = MONOTONIC,
        rng: random.Random | None = None,
        **options: Any,
    ) -> None:
        if not service_name:
            raise ConfigurationError("service_name must not be empty")
        if unknown := options.keys() - _PASSED_ON:
            raise ConfigurationError(
                f"unknown: {', '.join(sorted(unknown))}; what would go around the layers, such as "
                "a mount, is not taken: give its transport as `transport`"
            )
        if hedge_config is not None and retry_config is not None:
            raise ConfigurationError(
                "retries and hedges would multiply: pass retry_config=None with a hedge_config"
            )
        self.service_name = service_name
        self._clock = clock
        self._total = timeout_config.total
        self._stats = CallStats()
        self._attempts, self._retries = AttemptCount(), RetryCount()
        heard = Listeners((*listeners, self._retries))
        self._health_check_path = health_check_path
        self._health = HealthMonitor(
            service_name,
            self._ask_health if health_check_path else None,
            health_config,
            clock=clock,
            listeners=heard,
        )
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
        repeats = retry_config is not None or hedge_config is not None
        self._budget = budget_of(retry_budget, clock=clock) if repeats else None
        told: dict[str, Any] = {"name": service_name, "clock": clock, "listeners": heard}
        self._hedge = (
            HedgeLayer(hedge_config, budget=self._budget, **told) if hedge_config else None
        )
        per_call: list[HTTPLayer] = [ObserveLayer(self._stats, clock=clock)]
        if idempotency_keys and repeats:
            per_call.append(IdempotencyKeyLayer())
        if timeout_config.total is not None:
            per_call.append(DeadlineLayer(timeout_config.total, **told))
        if retry_config is not None:
            per_call.append(RetryLayer(retry_config, budget=self._budget, rng=rng, **told))
        elif self._hedge is not None:
            per_call.append(self._hedge)
        per_attempt: list[HTTPLayer] = [*self._guard.layers, self._attempts]
        if self._guard.limiter is not None:
            per_attempt.append(RateHeadersLayer(self._guard.limiter))
        if check_response is not None:
            per_attempt.append(CheckLayer(check_response, self.library))
        inner = chosen_wire(
            transport,
            self.wire_class,
            pool_config,
            library=self.library,
            http2=http2,
            verify=verify,
            check_address=check_address,
            max_header_size=limits.max_header_bytes,
            proxy=proxy,
        )
        url = self.library.url(base_url)
        origin = OriginLayer(url) if base_url else None
        self._service_url = public_url(url).rstrip("/")
        self.library.hide_urls()
        self._urls: dict[str, tuple[Any, Any]] = {}
        self._layered = self.transport_class(
            inner,
            *([origin] if origin else []),
            *per_call,
            *per_attempt,
            *layers,
            limits=limits,
            deadline_header=deadline_header,
            under_sdk=False,
        )
        # For health checks, which carry credentials like any other request.
        self._unguarded = stack(self._layered.wire, *layers, semantics=HTTP)
        super().__init__(
            base_url=base_url,
            headers=headers,
            auth=auth,
            timeout=self.library.timeout(**timeouts_of(timeout_config)),
            transport=self._layered,
            trust_env=False,
            **options,
        )

    def get_status(self) -> dict[str, Any]:
        """Return a snapshot of plain JSON types; times are seconds, rates 0.0 to 1.0.

        Keys: `service_name`, `base_url`; of the calls: `request_count`, `error_count`,
        `error_rate`, `failures` (count by kind), `average_response_time`, `response_time_p50`,
        `…p90`, `…p95`, `…p99`, `in_flight`, `refused_count`, `cancelled_count`; of their attempts:
        `attempt_count`, `retry_count`, `resent_count`; of the parts: `circuit_breaker`,
        `rate_limiter`, `bulkhead`, `health`, `hedge`, `retry_budget`, `pool`.
        """
        wire = self._layered.wire
        return {
            "service_name": self.service_name,
            "base_url": self._service_url,
            **self._stats.snapshot(),
            "attempt_count": self._attempts.count + wire.resent,
            "retry_count": self._retries.count,
            "resent_count": wire.resent,
            **self._guard.snapshot(),
            "hedge": status_of(self._hedge),
            "retry_budget": status_of(self._budget),
            "pool": pool_status(wire.transport),
        }

    def explain(self) -> str:
        """Say in words how the service does, and what the client does about it."""
        return explained(self.get_status())

    async def check_health(self) -> dict[str, Any]:
        """Ask the health check path once, if there is one, and return the health snapshot."""
        await self._health.check()
        return self._health.snapshot()

    def build_request(self, method: str, url: Any, *, content: Any = None, **options: Any) -> Any:
        """Build a request as the library does; `content` may be more than there."""
        if isinstance(url, str):
            url = self._absolute(url)
        if content is None:
            request = super().build_request(method, url, **options)
            files = options.get("files")
            # Two legs of a hedge would read the files of a form at the same time.
            if files and self._hedge is None and files_are_replayable(files):
                request.extensions = {**request.extensions, REPLAYABLE: True}
            return request
        body = body_of(content)
        request = super().build_request(method, url, content=body, **options)
        if isinstance(body, Body):
            if body.length is not None:
                request.headers.pop("Transfer-Encoding", None)
                request.headers["Content-Length"] = str(body.length)
            request.extensions = {**request.extensions, REPLAYABLE: body.is_replayable}
        return request

    async def send(self, request: Any, **options: Any) -> Any:
        """Send as the library does; a response that is not streamed is read inside its attempt."""
        buffered = not options.get("stream", False)
        request.extensions = {**request.extensions, BUFFERED: buffered}
        began = self._clock.now()
        with trace_call(clock=self._clock) as trace:
            if self._total is not None and self._may_hop(options):
                # Each hop has a deadline of its own, which ends first where there is only one.
                async with deadline(self._total + _AFTER, clock=self._clock):
                    response = await super().send(request, **options)
            else:
                response = await super().send(request, **options)
        response.extensions = {**response.extensions, TRACE: trace}
        if buffered:
            response.elapsed = timedelta(seconds=self._clock.now() - began)
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
        try:
            await self._health.stop()
        finally:
            await super().__aexit__(exc_type, exc_value, traceback)

    async def aclose(self) -> None:
        """Stop the health checks and close every connection."""
        try:
            await self._health.stop()
        finally:
            await super().aclose()

    async def _ask_health(self) -> None:
        # Past our own layers: a check must neither be refused by the breaker nor counted in it.
        request = self.build_request("GET", self._health_check_path or "/")
        request.extensions = {**request.extensions, BUFFERED: True}
        response = await self._unguarded(request)
        if HTTP.judge(response) is Verdict.FAILED:
            raise UpstreamError(f"health check answered {response.status_code}")

    def _may_hop(self, options: Mapping[str, Any]) -> bool:
        """Whether one call may take several requests: redirects, and what `auth` asks for."""
        default = self.library.client_default
        follows, auth = options.get("follow_redirects", default), options.get("auth", default)
        if follows is default:
            follows = self.follow_redirects
        return bool(follows) or (self.auth if auth is default else auth) is not None

    def _absolute(self, url: str) -> Any:
        """Return the URL that the library makes of this one; that is half the cost of a request."""
        if self.params:  # they would be in it
            return url
        known = self._urls.get(url)
        if known is not None and known[0] is self.base_url:
            return known[1]
        if len(self._urls) >= _MAX_URLS:
            self._urls.clear()
        absolute = super().build_request("GET", url).url
        self._urls[url] = self.base_url, absolute
        return absolute
