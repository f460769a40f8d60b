"""`DistributedLLMClient`: several LLM hosts that answer as one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import httpx

from shared.infrastructure.balancing.balance import Balance
from shared.infrastructure.balancing.errors import NotRunningError
from shared.infrastructure.balancing.hosts import Host, HostPolicy, LLMHost
from shared.infrastructure.balancing.roster import Roster
from shared.infrastructure.balancing.route import POOL, STREAMED, new_call, route_of
from shared.infrastructure.balancing.strategies import (
    BalancingStrategy,
    LoadBalancingStrategy,
    strategy_of,
)
from shared.infrastructure.balancing.streaming import Exchange, Recovery, opened, stream_chat
from shared.infrastructure.http import ConnectionPoolConfig, TimeoutConfig, WireTransport
from shared.infrastructure.http.extensions import BUFFERED, TRACE
from shared.infrastructure.http.library import HTTPX
from shared.infrastructure.http.transport import HTTPLayer
from shared.infrastructure.http.wires import timeouts_of
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
    HealthConfig,
    Listener,
    Listeners,
    ObserveLayer,
    RateLimitConfig,
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
    RetryLayer,
    ServiceError,
    stack,
)
from shared.infrastructure.resilience.guard import status_of
from shared.infrastructure.resilience.retry_budget import budget_of
from shared.infrastructure.resilience.trace import trace_call
from shared.models.llm import LLMChunk

_POOL = ConnectionPoolConfig()
_TIMEOUT = TimeoutConfig()
_RETRY = RetryConfig()
# Pays for all calls in flight at one host, should it die: 100 connections, 10 tokens a retry.
_BUDGET = RetryBudgetConfig(capacity=1000)
_BREAKER = CircuitBreakerConfig()
# Stands for whichever host is picked.
_BASE = "http://pool"


class DistributedLLMClient:
    """Several LLM hosts that serve the same models, used as one.

    Each attempt goes to one host; an attempt that fails goes on at once at a host the call has not
    tried, and only when all had their turn after a wait. 5xx, 429, timeouts, broken connections and
    answers that are none are failures; any other answer is returned as it is. Since an answer can
    be computed twice without harm, requests are repeated whatever their method: send nothing else
    through this client. The SDKs built on httpx use it as `http_client=httpx.AsyncClient(
    transport=client.transport)`.

    Calls are possible from the beginning; `start` adds the active health checks, and `stop` ends
    it all for good.

    Args:
        hosts: At least one; names are unique.
        strategy: Which host gets the next call: one of the enum, or an object with `pick`.
        retry_config: Attempts on all hosts together, and the waits once each had its turn; None is
            a single attempt.
        retry_budget: Bounds the retries of all calls together; 1000 tokens by default, so that the
            calls in flight at a host that dies can all go on elsewhere; None is no bound.
        circuit_breaker_config: Breaker of each host; None switches it off.
        rate_limit_config: Rate limit of each host; None (default) is no limit.
        bulkhead_config: Bound on calls in flight of each host; None (default) is no bound.
        pool_config: Connection pool of each host.
        timeout_config: Time limits; for a stream, `read` is also that between two chunks.
        health_config: Active checks, and when a host counts as degraded or unhealthy.
        listeners: Told of what the layers decide; the service is the host's name, or "llm" where
            it is about the whole pool.
        clock: Source of monotonic time.
        rng: Source of jitter and of random picks.
        transport: Transport for all hosts instead of the SDK's own; it brings its own pool and TLS.

    Raises:
        ConfigurationError: There is no host, or two have the same name.
    """

    def __init__(
        self,
        hosts: Sequence[LLMHost],
        strategy: LoadBalancingStrategy | BalancingStrategy = LoadBalancingStrategy.ROUND_ROBIN,
        *,
        retry_config: RetryConfig | None = _RETRY,
        retry_budget: RetryBudget | RetryBudgetConfig | None = _BUDGET,
        circuit_breaker_config: CircuitBreakerConfig | None = _BREAKER,
        rate_limit_config: RateLimitConfig | AdaptiveRateConfig | None = None,
        bulkhead_config: BulkheadConfig | AdaptiveBulkheadConfig | None = None,
        pool_config: ConnectionPoolConfig = _POOL,
        timeout_config: TimeoutConfig = _TIMEOUT,
        health_config: HealthConfig | None = None,
        listeners: Sequence[Listener] = (),
        clock: Clock = MONOTONIC,
        rng: random.Random | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not hosts:
            raise ConfigurationError("give at least one host")
        self._rng = rng or random.Random()  # noqa: S311 - balancing and jitter are no secrets
        self._retry = retry_config
        self._timeout_config = timeout_config
        self._timeout = timeouts_of(timeout_config)
        self._max_attempts = 1 + (retry_config.max_retries if retry_config else 0)
        self._clock = clock
        self._budget = budget_of(retry_budget, clock=clock) if retry_config else None
        self._stats = CallStats()
        self._is_stopped = False
        policy = HostPolicy(
            timeout=timeout_config,
            circuit_breaker=circuit_breaker_config,
            rate_limit=rate_limit_config,
            bulkhead=bulkhead_config,
            health=health_config,
        )
        self._roster = Roster(clock)
        heard = Listeners((*listeners, self._roster.on_event))
        shared = [transport] * len(hosts) if transport else _transports(len(hosts), pool_config)
        for config, inner in zip(hosts, shared, strict=True):
            self._roster.add(Host(config, policy, inner, clock=clock, listeners=heard))
        self._balance = Balance(self._roster, strategy_of(strategy, self._rng))
        self._send = stack(self._balance, *self._layers(heard), semantics=POOL)

    async def start(self) -> None:
        """Begin the active health checks; a second call changes nothing."""
        self._refuse_if_stopped()
        for host in self._hosts:
            host.health.start()

    async def stop(self) -> None:
        """End the health checks and close every connection; a second call changes nothing."""
        self._is_stopped = True
        await asyncio.gather(*(host.aclose() for host in self._hosts))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Send a request to one host after another until there is an answer.

        Args:
            method: HTTP method.
            path: Path and query on every host, beginning with "/".
            content: `json`, `content`, `params`, `headers`, …, as for `httpx.Request`.

        Raises:
            NoHostAvailableError: Every host is disabled, open or full.
            UpstreamError: The last attempt failed; `attempts` and `earlier` tell the story.
            DeadlineExceededError: `timeout_config.total` is over.
        """
        began = self._clock.now()
        request = self._build(method, path, content)
        request.extensions[BUFFERED] = True
        response = await self._exchange(request)
        await response.aread()
        response.elapsed = timedelta(seconds=self._clock.now() - began)
        return response

    async def post(self, path: str, **content: Any) -> httpx.Response:
        """Send a POST; see `request`."""
        return await self.request("POST", path, **content)

    async def get(self, path: str, **content: Any) -> httpx.Response:
        """Send a GET; see `request`."""
        return await self.request("GET", path, **content)

    def stream(
        self, path: str, *, method: str = "POST", **content: Any
    ) -> AbstractAsyncContextManager[httpx.Response]:
        """Send a request and give the response while its body is still coming.

        Of a chat stream the first content has arrived by then. It raises as `request` does, and
        reading the body an `UpstreamError`: a chat stream that ends early never looks complete.
        """
        return opened(self._exchange, self._build(method, path, content))

    def stream_chat(
        self,
        payload: Mapping[str, Any],
        path: str = "/v1/chat/completions",
        *,
        recovery: Recovery = "error",
    ) -> AsyncGenerator[LLMChunk, None]:
        """Stream an answer as chunks, in the order in which the model says them.

        Until the first chunk a failure goes unnoticed: another host takes over. After it,
        `recovery` decides: "error" raises `StreamInterruptedError` with the partial text, "restart"
        yields a chunk with `restarted` set and then a whole new answer from another host, as long
        as attempts are left. Closing the generator, or cancelling its reader, closes the connection
        to the host at once; use `contextlib.aclosing` if you may leave the loop early.

        Args:
            payload: Body of the call; `stream` is set.
            path: Path on every host.
            recovery: See above.

        Raises:
            StreamInterruptedError: The answer broke off and no other replaced it.
            UpstreamStatusError: The last answer, before the first chunk, was an error status.
            ServiceError: As for `request`.
        """
        request = self._build("POST", path, {"json": {**payload, "stream": True}})
        return stream_chat(self._exchange, request, recovery, self._pause)

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """The pool as an httpx transport; its requests may name any origin, only the path counts.

        Closing it, or a client that uses it, closes nothing: the pool ends with `stop`.
        """
        return _PoolTransport(self._exchange, self._max_attempts)

    def enable_host(self, name: str) -> None:
        """Give new calls to a host again."""
        self._roster.enable(name, True)

    def disable_host(self, name: str) -> None:
        """Give no new calls to a host, from this moment on; those in flight go on."""
        self._roster.enable(name, False)

    async def health_check_all(self) -> dict[str, dict[str, Any]]:
        """Ask every host at once, the disabled ones too; return each one's health snapshot."""
        self._refuse_if_stopped()
        await asyncio.gather(*(host.health.check() for host in self._hosts))
        return {host.name: host.health.snapshot() for host in self._hosts}

    def get_metrics(self) -> dict[str, Any]:
        """Return counters as plain JSON types; times are seconds.

        `totals` counts what callers saw, with a restarted stream as two calls, and how many
        attempts failed over to another host. `hosts` has for each host `url`, `weight`, `enabled`,
        its own counts of attempts, and the state of its `circuit_breaker`, `rate_limiter`,
        `bulkhead` and `health`.
        """
        return {
            "totals": {**self._stats.snapshot(), "failover_count": self._balance.failovers},
            "hosts": {host.name: host.snapshot() for host in self._hosts},
        }

    def get_status(self) -> dict[str, Any]:
        """Return the metrics, the retry budget, whether the pool runs, and who may be called."""
        return {
            "running": not self._is_stopped,
            "available_hosts": [h.name for h in self._hosts if h.enabled and not h.is_open],
            "retry_budget": status_of(self._budget),
            **self.get_metrics(),
        }

    @property
    def _hosts(self) -> Collection[Host]:
        return self._roster.hosts.values()

    def _layers(self, listeners: Listeners) -> list[HTTPLayer]:
        """Return the half of the stack that is per call; that per attempt belongs to each host."""
        layers: list[HTTPLayer] = [ObserveLayer(self._stats, clock=self._clock)]
        if self._timeout_config.total is not None:
            layers.append(
                DeadlineLayer(
                    self._timeout_config.total, name="llm", clock=self._clock, listeners=listeners
                )
            )
        if self._retry is not None:
            layers.append(
                RetryLayer(
                    # A busy host is no reason to give up while there are others.
                    self._retry.model_copy(update={"retry_busy": True}),
                    name="llm",
                    at_once=self._balance.has_fresh_host,
                    budget=self._budget,
                    clock=self._clock,
                    rng=self._rng,
                    listeners=listeners,
                )
            )
        return layers

    def _build(self, method: str, path: str, content: Mapping[str, Any]) -> httpx.Request:
        if not path.startswith("/"):
            raise ConfigurationError(f"path must begin with /, the hosts are known: {path!r}")
        request = httpx.Request(method, _BASE + path, **content)
        request.extensions = {**new_call(request, self._max_attempts), "timeout": self._timeout}
        return request

    async def _exchange(self, request: httpx.Request) -> httpx.Response:
        self._refuse_if_stopped()
        try:
            with trace_call(clock=self._clock) as trace:
                response = await self._send(request)
        except ServiceError as exc:
            exc.attempts = route_of(request).attempts
            raise
        response.extensions = {**response.extensions, TRACE: trace}
        return response

    async def _pause(self, request: httpx.Request) -> None:
        """Wait as retry would, before a stream begins anew."""
        if self._retry is not None and not self._balance.has_fresh_host(request):
            await self._clock.sleep(self._retry.delay(route_of(request).attempts, self._rng))

    def _refuse_if_stopped(self) -> None:
        if self._is_stopped:
            raise NotRunningError("this client has been stopped; make a new one")


class _PoolTransport(httpx.AsyncBaseTransport):
    def __init__(self, exchange: Exchange, max_attempts: int) -> None:
        self._exchange = exchange
        self._max_attempts = max_attempts

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = new_call(request, self._max_attempts)
        call.setdefault(BUFFERED, request.method == "POST" and not call[STREAMED])
        # A copy, for the caller may send the same request again, even at the same time.
        return await self._exchange(
            httpx.Request(
                request.method,
                request.url,
                headers=request.headers,
                stream=request.stream,
                extensions=call,
            )
        )


def _transports(count: int, pool: ConnectionPoolConfig) -> list[WireTransport]:
    # One TLS context for all: reading the certificates takes longer than all else here.
    tls = HTTPX.default_tls()
    return [WireTransport(pool, tls=tls) for _ in range(count)]
