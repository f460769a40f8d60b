"""`ProductionLLMService`: ask language models on several hosts, and know how that goes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from types import TracebackType
from typing import Any, Self

import httpx

from services.llm.settings import LLMServiceSettings
from shared.infrastructure.balancing import (
    AnswerTimeoutConfig,
    DistributedLLMClient,
    NotRunningError,
    Recovery,
)
from shared.infrastructure.http import ConnectionPoolConfig, TimeoutConfig
from shared.infrastructure.resilience import (
    MONOTONIC,
    CallRefusedError,
    CallStats,
    CircuitBreakerConfig,
    CircuitState,
    Clock,
    HealthConfig,
    HealthStatus,
    HedgeConfig,
    Listener,
    RetryConfig,
    TokenBucket,
    deadline,
)
from shared.infrastructure.resilience.timeout import within_deadline
from shared.models import (
    ChatCompletion,
    ChatCompletionChunk,
    LLMChunk,
    LLMRequest,
    LLMResponse,
    StreamRestarted,
    Usage,
)

_HAIR = 1e-6


class ProductionLLMService:
    """Generates, streams and embeds on a pool of hosts, at a rate of its own.

    Calls are possible between `start` and `stop`; before and after, `NotRunningError` says so.

    Args:
        settings: Hosts, limits and defaults.
        listeners: Told of breaker, health and retry events.
        clock: Source of monotonic time.
        transport: Transport for all hosts instead of the SDK's own.

    Attributes:
        settings: As given.
        client: The pool of hosts, for calls that the service has no method for; its rate does not
            count there.
    """

    def __init__(
        self,
        settings: LLMServiceSettings | None = None,
        *,
        listeners: Sequence[Listener] = (),
        clock: Clock = MONOTONIC,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.settings = settings or LLMServiceSettings()
        self._clock = clock
        self._limiter = TokenBucket(
            self.settings.requests_per_second, self.settings.burst_size, clock=clock
        )
        self.client = client_of(
            self.settings, listeners=listeners, clock=clock, transport=transport
        )
        self._stats = CallStats()
        self._started_at: float | None = None
        self._is_running = False
        self._generations = self._embeddings = self._tokens = 0

    async def start(self) -> None:
        """Begin to serve and to check the hosts; a second call changes nothing.

        Raises:
            NotRunningError: The service has been stopped; make a new one.
        """
        await self.client.start()
        if not self._is_running:
            self._is_running, self._started_at = True, self._clock.now()

    async def stop(self) -> None:
        """End it all for good; a second call changes nothing."""
        self._is_running = False
        await self.client.stop()

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

    async def generate(self, request: LLMRequest) -> LLMResponse:
        """Return the whole answer to a request.

        Raises:
            UpstreamStatusError: The last answer of the hosts was an error status.
            InvalidResponseError: It was no chat answer.
            ServiceError: As for `DistributedLLMClient.request`.
        """
        async with self._call() as limit, limit:
            answer = await self.client.chat(self._payload(request))
            self._generations += 1
            self._count(answer.usage)
            return _response(answer)

    async def stream(
        self, request: LLMRequest, *, recovery: Recovery = "error"
    ) -> AsyncGenerator[LLMChunk, None]:
        """Yield the answer to a request while the model says it.

        As `DistributedLLMClient.stream`, which explains `recovery` and the errors.
        """
        async with self._call() as limit, AsyncExitStack() as stack:
            async with limit:  # the stream takes it over, and it must not outlast a `yield`
                answer = await stack.enter_async_context(
                    self.client.stream(self._payload(request), recovery=recovery)
                )
            usage: Usage | None = None
            async for piece in answer:
                usage = piece.usage or usage
                yield _chunk(piece, answer.host)
            self._generations += 1
            self._count(usage)

    async def embed(self, texts: str | Sequence[str]) -> list[list[float]]:
        """Return one vector for each text, in their order.

        Raises:
            UpstreamStatusError: The last answer of the hosts was an error status.
            InvalidResponseError: It was not one finite vector for each text, of one length.
            ServiceError: As for `DistributedLLMClient.request`.
        """
        inputs = [texts] if isinstance(texts, str) else list(texts)
        async with self._call() as limit, limit:
            if not inputs:
                return []
            model = self.settings.embedding_model or self.settings.model
            payload = {"input": inputs, **({"model": model} if model else {})}
            answer = await self.client.embeddings(payload)
            self._embeddings += len(inputs)
            self._count(answer.usage)
            return answer.vectors

    def get_metrics(self) -> dict[str, Any]:
        """Return counters since the start as plain JSON types; times are seconds.

        Keys: `generation_count`, `embedding_count` (texts), `total_tokens_used`, `request_count`,
        `error_count`, `error_rate` (0.0 to 1.0), `average_response_time`, `in_flight`,
        `requests_per_second` (mean since the start), `failover_count`, `hosts`, ….
        """
        pool = self.client.get_metrics()
        uptime = 0.0 if self._started_at is None else self._clock.now() - self._started_at
        return {
            "generation_count": self._generations,
            "embedding_count": self._embeddings,
            "total_tokens_used": self._tokens,
            **self._stats.snapshot(),
            "requests_per_second": self._stats.requests / uptime if uptime else 0.0,
            "failover_count": pool["totals"]["failover_count"],
            "hosts": pool["hosts"],
        }

    async def health_check(self) -> dict[str, Any]:
        """Ask every host, and return `status`, `metrics`, `circuit_breaker` and `rate_limiter`.

        The service is healthy if every host is, unhealthy if none can be used, degraded in between,
        and unknown while it does not run. Its circuit is as closed as that of its best host.
        """
        if self._is_running:
            await self.client.health_check_all()
        metrics = self.get_metrics()
        hosts = [host for host in metrics["hosts"].values() if host["enabled"]]
        return {
            "status": _status(hosts) if self._is_running else HealthStatus.UNKNOWN.value,
            "metrics": metrics,
            "circuit_breaker": {"state": _state(hosts)},
            "rate_limiter": self._limiter.snapshot(),
        }

    @asynccontextmanager
    async def _call(self) -> AsyncGenerator[AbstractAsyncContextManager[None], None]:
        """Count a call, let it begin when the rate allows, and give what limits the rest of it."""
        if not self._is_running:
            raise NotRunningError("the service is not running: call start() first")
        stats, began = self._stats, self._clock.now()
        stats.in_flight += 1
        try:
            total = self.settings.total_timeout
            await self._limiter.acquire(max_wait=within_deadline(total))
            # What the wait took is gone; a hair is left, so that it is the call that fails.
            left = total and max(total - (self._clock.now() - began), _HAIR)
            yield nullcontext() if left is None else deadline(left, clock=self._clock)
        except Exception as exc:
            stats.refused += isinstance(exc, CallRefusedError)
            stats.settle(False, self._clock.now() - began)
            raise
        except BaseException:
            stats.cancelled += 1
            raise
        else:
            stats.settle(True, self._clock.now() - began)
        finally:
            stats.in_flight -= 1

    def _payload(self, request: LLMRequest) -> dict[str, Any]:
        default = {"model": self.settings.model} if self.settings.model else {}
        return {**default, **request.to_payload()}

    def _count(self, usage: Usage | None) -> None:
        self._tokens += usage.total_tokens if usage else 0


def client_of(settings: LLMServiceSettings, **options: Any) -> DistributedLLMClient:
    """Return the client that settings describe; `options` are further arguments of it."""
    return DistributedLLMClient(
        settings.keyed_hosts(),
        settings.strategy,
        retry_config=RetryConfig(max_retries=settings.max_retries),
        circuit_breaker_config=CircuitBreakerConfig(
            failure_threshold=settings.failure_threshold, timeout=settings.recovery_timeout
        ),
        pool_config=ConnectionPoolConfig(
            max_connections=settings.max_connections,
            max_keepalive_connections=settings.max_keepalive_connections,
        ),
        timeout_config=TimeoutConfig(
            connect=settings.connect_timeout,
            read=settings.read_timeout,
            total=settings.total_timeout,
        ),
        answer_timeouts=AnswerTimeoutConfig(
            first_token=settings.first_token_timeout, idle=settings.idle_timeout
        ),
        health_config=HealthConfig(interval=settings.health_check_interval),
        hedge_config=(
            None if settings.hedge_delay is None else HedgeConfig(delay=settings.hedge_delay)
        ),
        **options,
    )


def _response(answer: ChatCompletion) -> LLMResponse:
    choice, route = answer.choices[0], answer.route
    return LLMResponse(
        text=answer.text,
        model=answer.model,
        usage=answer.usage,
        finish_reason=choice.finish_reason,
        message=choice.message.model_dump(exclude_unset=True),
        host=route.host if route else None,
        attempts=len(route.attempts) if route else 1,
        route=route,
    )


def _chunk(piece: ChatCompletionChunk | StreamRestarted, host: str | None) -> LLMChunk:
    if isinstance(piece, StreamRestarted):
        return LLMChunk(host=piece.host, restarted=True, discarded=piece.discarded_characters)
    return LLMChunk(
        text=piece.text,
        finish_reason=piece.finish_reason,
        usage=piece.usage,
        delta=piece.delta,
        model=piece.model,
        host=host,
    )


def _status(hosts: Sequence[dict[str, Any]]) -> str:
    statuses = {host["health"]["status"] for host in hosts}
    if statuses == {HealthStatus.HEALTHY}:
        return HealthStatus.HEALTHY.value
    if statuses <= {HealthStatus.UNHEALTHY}:
        return HealthStatus.UNHEALTHY.value
    return HealthStatus.DEGRADED.value


def _state(hosts: Sequence[dict[str, Any]]) -> str:
    states = {host["circuit_breaker"]["state"] for host in hosts}
    order = (
        CircuitState.CLOSED,
        CircuitState.METRICS_ONLY,
        CircuitState.DISABLED,
        CircuitState.HALF_OPEN,
        CircuitState.OPEN,
        CircuitState.FORCED_OPEN,
    )
    # Without a host that may be used, nothing passes, as somebody wished.
    return next((state.value for state in order if state in states), CircuitState.FORCED_OPEN.value)
