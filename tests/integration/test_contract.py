"""The public contract, line by line: names, arguments, defaults and result keys users rely on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from examples.demo.processes import EmbeddingProcess, LlamaHost, serving
from services.embedding import ProductionEmbeddingService
from services.llm import LLMServiceSettings, ProductionLLMService
from shared.infrastructure import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    CircuitState,
    ConnectionPoolConfig,
    DistributedLLMClient,
    EnhancedHTTPClient,
    HealthMonitor,
    HealthStatus,
    LLMHost,
    LoadBalancingStrategy,
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    LocalEmbeddingPool,
    ModelBackend,
    RateLimitConfig,
    RateLimitStrategy,
    RetryConfig,
    ServiceError,
    SlidingWindow,
    TimeoutConfig,
    TokenBucket,
)
from shared.models import LLMRequest

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PAYLOAD = {
    "model": LlamaHost.model,
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 8,
    "temperature": 0,
}


def defaults(config: Any, **expected: object) -> None:
    for name, value in expected.items():
        assert getattr(config, name) == value, name


def test_configs_have_the_promised_names_and_defaults() -> None:
    defaults(
        ConnectionPoolConfig(),
        max_connections=100,
        max_keepalive_connections=20,
        keepalive_expiry=5.0,
    )
    defaults(
        RetryConfig(),
        max_retries=3,
        base_delay=1.0,
        max_delay=60.0,
        exponential_base=2.0,
        jitter=True,
    )
    defaults(TimeoutConfig(), connect=5.0, read=30.0, write=10.0, pool=5.0)
    defaults(CircuitBreakerConfig(success_threshold=3), failure_threshold=5, timeout=60.0)
    for strategy, limiter in [
        (RateLimitStrategy.TOKEN_BUCKET, TokenBucket),
        (RateLimitStrategy.SLIDING_WINDOW, SlidingWindow),
    ]:
        config = RateLimitConfig(requests_per_second=10, burst_size=20, strategy=strategy)
        assert isinstance(config.build(), limiter)


async def test_breaker_limiters_and_monitor_report_their_state() -> None:
    breaker = CircuitBreaker("db", CircuitBreakerConfig(failure_threshold=1))
    assert breaker.state is CircuitState.CLOSED
    assert {state.name for state in CircuitState} >= {"CLOSED", "OPEN", "HALF_OPEN"}
    assert breaker.snapshot()["state"] == "closed"

    for limiter in (TokenBucket(1000.0, 1), SlidingWindow(1, 0.001)):
        await limiter.acquire()
        assert limiter.utilization > 0.0
        await limiter.acquire()

    async def check() -> None:
        return None

    monitor = HealthMonitor("db", check)
    assert monitor.status is HealthStatus.UNKNOWN
    assert await monitor.check() is HealthStatus.HEALTHY
    assert {status.name for status in HealthStatus} == {
        "HEALTHY",
        "DEGRADED",
        "UNHEALTHY",
        "UNKNOWN",
    }
    report = monitor.snapshot()
    assert {"response_time", "consecutive_failures", "uptime_percentage", "checks"} <= report.keys()
    assert monitor.config.history == 100


async def test_the_enhanced_http_client_calls_a_real_service_and_reports(
    llama_hosts: list[LlamaHost],
) -> None:
    async with EnhancedHTTPClient(
        service_name="llm",
        base_url=llama_hosts[0].url,
        pool_config=ConnectionPoolConfig(),
        retry_config=RetryConfig(base_delay=0.01),
        timeout_config=TimeoutConfig(),
        circuit_breaker_config=CircuitBreakerConfig(),
        rate_limit_config=RateLimitConfig(requests_per_second=100, burst_size=20),
    ) as client:
        response = await client.post("/v1/chat/completions", json=PAYLOAD)
        assert response.json()["choices"][0]["message"]["content"]
        missing = await client.post("/api/endpoint", json=PAYLOAD)
        assert missing.status_code == 404
        status = client.get_status()
    assert status["error_rate"] == 0.0
    assert status["circuit_breaker"]["state"] == "closed"
    assert status["rate_limiter"]["granted"] == 2
    assert status["health"]["status"] == "healthy"
    assert status["request_count"] == 2
    assert status["error_count"] == 0
    assert status["average_response_time"] > 0.0


async def test_a_service_that_is_gone_is_retried_then_refused_with_structured_errors(
    fresh_llama_hosts: Callable[[int], list[LlamaHost]],
) -> None:
    (host,) = fresh_llama_hosts(1)
    async with EnhancedHTTPClient(
        "llm", host.url, retry_config=RetryConfig(base_delay=0.01)
    ) as client:
        assert (await client.get("/health")).status_code == 200
        host.kill()
        with pytest.raises(ServiceError) as gone:
            await client.post("/v1/chat/completions", json=PAYLOAD)
        assert gone.value.code == "connect_failed"
        assert gone.value.attempts == 4
        with pytest.raises(CircuitOpenError):
            await client.post("/v1/chat/completions", json=PAYLOAD)
        assert client.get_status()["circuit_breaker"]["state"] == "open"


@pytest.mark.parametrize("strategy", list(LoadBalancingStrategy))
async def test_the_distributed_client_balances_real_hosts(
    llama_hosts: list[LlamaHost], strategy: LoadBalancingStrategy
) -> None:
    hosts = [LLMHost(name="host1", url=llama_hosts[0].url, weight=2.0)]
    hosts += [LLMHost(f"host{n}", llama_hosts[n - 1].url) for n in (2, 3)]
    assert hosts[1].weight == 1.0
    client = DistributedLLMClient(hosts=hosts, strategy=strategy)
    await client.start()
    try:
        for _ in range(3):
            response = await client.post("/v1/chat/completions", json=PAYLOAD)
            assert response.json()["choices"][0]["message"]["content"]
        health = await client.health_check_all()
        assert {name: health[name]["status"] for name in health} == {
            "host1": "healthy",
            "host2": "healthy",
            "host3": "healthy",
        }
        client.disable_host("host1")
        client.disable_host("host2")
        before = client.get_metrics()["hosts"]["host3"]["request_count"]
        await client.post("/v1/chat/completions", json=PAYLOAD)
        assert client.get_metrics()["hosts"]["host3"]["request_count"] == before + 1
        client.enable_host("host1")
    finally:
        await client.stop()


def test_the_strategies_have_the_promised_names() -> None:
    names = {strategy.name for strategy in LoadBalancingStrategy}
    assert {"ROUND_ROBIN", "RANDOM", "LEAST_LOADED", "WEIGHTED_RANDOM"} <= names


@pytest.mark.parametrize("backend", list(ModelBackend))
async def test_a_local_model_embeds_with_every_backend(backend: ModelBackend) -> None:
    model = LocalEmbeddingModel(
        LocalEmbeddingConfig(model_name=MODEL, backend=backend, device="cpu", batch_size=32)
    )
    await model.load()
    vectors = await model.embed(["text1", "text2"])
    assert vectors.shape == (2, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1.0, 1.0], abs=1e-5)
    assert model.get_info()["embedding_dimension"] == 384
    await model.unload()
    assert not model.get_info()["loaded"]


def test_the_backends_have_the_promised_names() -> None:
    names = {backend.name for backend in ModelBackend}
    assert names >= {"SENTENCE_TRANSFORMERS", "TRANSFORMERS", "ONNX", "FASTEMBED"}


async def test_a_pool_of_models_serves_concurrent_callers() -> None:
    pool = LocalEmbeddingPool(LocalEmbeddingConfig(backend=ModelBackend.ONNX, threads=1), size=2)
    await pool.load()
    try:
        answers = await asyncio.gather(*(pool.embed([f"text {n}"]) for n in range(8)))
        assert len({answer.tobytes() for answer in answers}) == 8
    finally:
        await pool.unload()


def test_the_llm_service_has_the_promised_defaults() -> None:
    defaults(
        LLMServiceSettings(),
        max_connections=100,
        max_keepalive_connections=20,
        failure_threshold=5,
        recovery_timeout=60.0,
        requests_per_second=10.0,
        burst_size=20,
        max_retries=3,
        health_check_interval=30.0,
    )


async def test_the_llm_service_generates_embeds_and_reports(llama_hosts: list[LlamaHost]) -> None:
    settings = LLMServiceSettings(
        hosts=[LLMHost(host.name, host.url) for host in llama_hosts], model=LlamaHost.model
    )
    service = ProductionLLMService(settings)
    await service.start()
    try:
        answer = await service.generate(LLMRequest(prompt="Say hello.", max_tokens=8))
        assert answer.text
        metrics = service.get_metrics()
        assert metrics["generation_count"] == 1
        assert metrics["embedding_count"] == 0
        assert metrics["total_tokens_used"] > 0
        assert metrics["error_rate"] == 0.0
        assert metrics["average_response_time"] > 0.0
        assert "requests_per_second" in metrics
        health = await service.health_check()
        assert {"status", "metrics", "circuit_breaker", "rate_limiter"} <= health.keys()
        assert health["status"] == "healthy"
        assert health["circuit_breaker"]["state"] == "closed"
    finally:
        await service.stop()


async def test_the_llm_service_embeds_through_the_same_client() -> None:
    process = EmbeddingProcess()
    async with serving(process):
        hosts = [LLMHost(process.name, process.url)]
        service = ProductionLLMService(LLMServiceSettings(hosts=hosts))
        await service.start()
        try:
            vectors = await service.embed(["cat", "kitten"])
            assert [len(vector) for vector in vectors] == [384, 384]
            assert service.get_metrics()["embedding_count"] > 0
        finally:
            await service.stop()


@pytest.fixture
async def embeddings() -> AsyncIterator[ProductionEmbeddingService]:
    service = ProductionEmbeddingService()
    await service.start()
    yield service
    await service.stop()


async def test_the_embedding_service_embeds_caches_and_compares(
    embeddings: ProductionEmbeddingService,
) -> None:
    result = await embeddings.embed("Hello world")
    assert result.dimension == 384
    assert not result.cached
    assert len(result.embedding) == 384
    assert (await embeddings.embed("Hello world")).cached
    several = await embeddings.embed(["cat", "kitten", "Hello world"])
    assert [item.cached for item in several] == [False, False, True]
    close = await embeddings.compute_similarity("cat", "kitten")
    far = await embeddings.compute_similarity("cat", "car")
    assert 1.0 >= close > far
    cache = embeddings.get_metrics()["cache"]
    assert cache["hits"] + cache["misses"] > 0
    assert 0.0 < cache["hit_rate"] < 1.0


async def test_the_embedding_service_has_the_promised_defaults(
    embeddings: ProductionEmbeddingService,
) -> None:
    defaults(
        embeddings.settings,
        batch_size=32,
        max_text_length=8192,
        cache_size=1000,
        max_connections=50,
        failure_threshold=5,
        requests_per_second=5.0,
        burst_size=10,
    )


async def test_the_embedding_service_truncates_long_text(
    embeddings: ProductionEmbeddingService,
) -> None:
    long = "word " * 3000
    cut = await embeddings.embed(long)
    assert cut.truncated
    assert (await embeddings.embed(long[:8192])).cached
