"""`ProductionLLMService`: ask language models on several hosts, and know how that goes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from pydantic import ValidationError

from services.llm.settings import LLMServiceSettings
from shared.infrastructure.balancing import (
    DistributedLLMClient,
    InvalidResponseError,
    NotRunningError,
    Recovery,
    route_of,
)
from shared.infrastructure.balancing.answers import answer_of
from shared.infrastructure.balancing.payloads import JSONObject, as_object, as_objects
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
    Listener,
    RetryConfig,
    TokenBucket,
)
from shared.infrastructure.resilience.timeout import within_deadline
from shared.models import LLMChunk, LLMRequest, LLMResponse, Usage


class ProductionLLMService:
    """Generates, streams and embeds on a pool of hosts, at a rate of its own.

    Calls are possible between `start` and `stop`; before and after, `NotRunningError` says so.

    Args:
        settings: Hosts, limits and defaults.
        listeners: Told of breaker, health and retry events.
        clock: Source of monotonic time.
        transport: Transport for all hosts instead of httpx's own.
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
        self._pool = _pool(self.settings, listeners=listeners, clock=clock, transport=transport)
        self._stats = CallStats()
        self._started_at: float | None = None
        self._is_running = False
        self._generations = self._embeddings = self._tokens = 0

    async def start(self) -> None:
        """Begin to serve and to check the hosts; a second call changes nothing.

        Raises:
            NotRunningError: The service has been stopped; make a new one.
        """
        await self._pool.start()
        if not self._is_running:
            self._is_running, self._started_at = True, self._clock.now()

    async def stop(self) -> None:
        """End it all for good; a second call changes nothing."""
        self._is_running = False
        await self._pool.stop()

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
        async with self._call():
            response = await self._pool.post("/v1/chat/completions", json=self._payload(request))
            answer = _chat_answer(response)
            self._generations += 1
            self._count(answer.usage)
            return answer

    async def stream(
        self, request: LLMRequest, *, recovery: Recovery = "error"
    ) -> AsyncGenerator[LLMChunk, None]:
        """Yield the answer to a request while the model says it.

        As `DistributedLLMClient.stream_chat`, which explains `recovery` and the errors.
        """
        payload = {"stream_options": {"include_usage": True}, **self._payload(request)}
        async with (
            self._call(),
            aclosing(self._pool.stream_chat(payload, recovery=recovery)) as chunks,
        ):
            usage: Usage | None = None
            async for chunk in chunks:
                usage = chunk.usage or usage
                yield chunk
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
        async with self._call():
            if not inputs:
                return []
            model = self.settings.embedding_model or self.settings.model
            payload = {"input": inputs, **({"model": model} if model else {})}
            answer = answer_of(await self._pool.post("/v1/embeddings", json=payload))
            vectors = _vectors(answer, len(inputs))
            self._embeddings += len(inputs)
            self._count(_usage(answer))
            return vectors

    def get_metrics(self) -> dict[str, Any]:
        """Return counters since the start as plain JSON types; times are seconds.

        Keys: `generation_count`, `embedding_count` (texts), `total_tokens_used`, `request_count`,
        `error_count`, `error_rate` (0.0 to 1.0), `average_response_time`, `in_flight`,
        `requests_per_second` (mean since the start), `failover_count`, `hosts`, ….
        """
        pool = self._pool.get_metrics()
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
            await self._pool.health_check_all()
        metrics = self.get_metrics()
        hosts = [host for host in metrics["hosts"].values() if host["enabled"]]
        return {
            "status": _status(hosts) if self._is_running else HealthStatus.UNKNOWN.value,
            "metrics": metrics,
            "circuit_breaker": {"state": _state(hosts)},
            "rate_limiter": self._limiter.snapshot(),
        }

    @asynccontextmanager
    async def _call(self) -> AsyncGenerator[None, None]:
        """Count a call, and let it begin when the rate allows."""
        if not self._is_running:
            raise NotRunningError("the service is not running: call start() first")
        stats, began = self._stats, self._clock.now()
        stats.in_flight += 1
        try:
            await self._limiter.acquire(max_wait=within_deadline(None))
            yield
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


def _pool(settings: LLMServiceSettings, **options: Any) -> DistributedLLMClient:
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
        health_config=HealthConfig(interval=settings.health_check_interval),
        **options,
    )


def _chat_answer(response: httpx.Response) -> LLMResponse:
    answer = answer_of(response)
    choice, *_ = as_objects(answer.get("choices")) or [{}]
    message = as_object(choice.get("message"))
    route = route_of(response)
    try:
        return LLMResponse(
            text=message.get("content") or "",
            model=answer.get("model"),
            usage=answer.get("usage"),
            finish_reason=choice.get("finish_reason"),
            message=message,
            host=route.host,
            attempts=route.attempts,
        )
    except ValidationError as exc:
        raise InvalidResponseError(f"not a chat answer: {exc}", host=route.host) from exc


def _vectors(answer: JSONObject, count: int) -> list[list[float]]:
    items = as_objects(answer.get("data"))
    by_index = {str(item.get("index")): item.get("embedding") for item in items}
    if by_index.keys() != {str(index) for index in range(count)}:
        raise InvalidResponseError(f"asked for {count} vectors, got {sorted(by_index)}")
    try:
        matrix = np.asarray([by_index[str(index)] for index in range(count)], dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidResponseError("the vectors differ in length, or are none") from None
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        raise InvalidResponseError("a vector is empty, or holds NaN or infinity")
    vectors: list[list[float]] = matrix.tolist()
    return vectors


def _usage(answer: JSONObject) -> Usage:
    try:
        return Usage.model_validate(as_object(answer.get("usage")))
    except ValidationError as exc:
        raise InvalidResponseError(f"the usage is no count of tokens: {exc}") from exc


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
    return next(state.value for state in order if state in states)
