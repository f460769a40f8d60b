"""What the documentation shows runs as it stands, and what it states is what the code has."""

import dataclasses
import enum
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from services.embedding import EmbeddingSettings, EmbedOptions, ProductionEmbeddingService
from services.embedding.caching import EmbeddingCache
from services.embedding.outcome import Outcome
from services.embedding.scheduling import Scheduler, SchedulerConfig
from shared.infrastructure import (
    AnswerTimeoutConfig,
    BalanceConfig,
    BulkheadConfig,
    CircuitBreaker,
    CircuitBreakerConfig,
    ConnectionPoolConfig,
    DistributedLLMClient,
    EnhancedHTTPClient,
    FallbackConfig,
    HealthConfig,
    HealthMonitor,
    LLMHost,
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    RateLimitConfig,
    RetryBudget,
    RetryConfig,
    TimeoutConfig,
)
from shared.infrastructure.balancing.accounting import AnswerCacheConfig, AnswerCacheLayer
from shared.infrastructure.http import ResponseLimits, TLSConfig
from shared.infrastructure.local_embeddings import RerankerConfig
from shared.infrastructure.resilience import (
    AdaptiveBulkhead,
    AdaptiveBulkheadConfig,
    AdaptiveRate,
    AdaptiveRateConfig,
    AdaptiveTimeoutConfig,
    CallStats,
    FallbackLayer,
    HedgeConfig,
    HedgeLayer,
    RedisConfig,
    RedisLimiter,
    RedisStore,
    RetryBudgetConfig,
    SingleFlight,
    TokenBucket,
    TrendConfig,
)
from tests.snippets import run_example

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md") if page.name != "README.md")
SECTIONS = ["What it is for", "Example", "Defaults", "What it reports", "Anti-patterns"]
CONFIGS: dict[str, list[type[Any]]] = {
    "bulkhead.md": [BulkheadConfig, AdaptiveBulkheadConfig],
    "circuit-breaker.md": [CircuitBreakerConfig, TrendConfig],
    "embedding-scheduling.md": [SchedulerConfig],
    "embedding-service.md": [EmbedOptions],
    "embeddings.md": [LocalEmbeddingConfig],
    "health.md": [HealthConfig],
    "hedge.md": [HedgeConfig],
    "http-client.md": [TimeoutConfig, ConnectionPoolConfig, ResponseLimits],
    "llm-client.md": [LLMHost, AnswerTimeoutConfig, BalanceConfig],
    "llm-failover.md": [FallbackConfig],
    "llm-limits.md": [AnswerCacheConfig],
    "rate-limiter.md": [RateLimitConfig, AdaptiveRateConfig],
    "reranking.md": [RerankerConfig],
    "retry-budget.md": [RetryBudgetConfig],
    "retry.md": [RetryConfig],
    "shared-rate-limiter.md": [RedisConfig],
    "timeout.md": [AdaptiveTimeoutConfig],
    "tls.md": [TLSConfig],
}


def text(page: str) -> str:
    return (DOCS / page).read_text()


def documented(page: str, config: str) -> dict[str, str]:
    table = text(page).split(f"\n`{config}`\n\n")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| `?(.*?)`? \|", table, flags=re.MULTILINE))


def shown(default: object) -> str:
    if isinstance(default, enum.Enum):
        return str(default.value)
    return default if isinstance(default, str) and not default.startswith("/") else repr(default)


def actual(config: type[Any]) -> dict[str, str]:
    if issubclass(config, BaseModel):
        return {
            name: "required"
            if field.is_required()
            else shown(field.get_default(call_default_factory=True))
            for name, field in config.model_fields.items()
        }
    missing = dataclasses.MISSING
    return {
        field.name: shown(field.default)
        if field.default is not missing
        else ("required" if field.default_factory is missing else shown(field.default_factory()))
        for field in dataclasses.fields(config)
    }


async def _no_fallback(_request: str, _outcome: object) -> str:
    return ""


async def _no_outcomes(_batch: object) -> list[Outcome]:
    return []


def snapshots() -> dict[str, dict[str, Any]]:
    pool = DistributedLLMClient([LLMHost("a", "http://a")])
    return {
        "bulkhead.md": AdaptiveBulkhead().snapshot(),
        "circuit-breaker.md": CircuitBreaker().snapshot(),
        "embedding-cache.md": EmbeddingCache.from_settings(EmbeddingSettings()).snapshot(),
        "embedding-scheduling.md": Scheduler(_no_outcomes).snapshot(),
        "embedding-service.md": {
            key: value
            for key, value in ProductionEmbeddingService().get_metrics().items()
            if key not in CallStats().snapshot()
        },
        "embeddings.md": LocalEmbeddingModel().get_info(),
        "health.md": HealthMonitor().snapshot(),
        "fallback.md": FallbackLayer(_no_fallback).snapshot(),
        "hedge.md": HedgeLayer(HedgeConfig()).snapshot(),
        "http-client.md": EnhancedHTTPClient("a").get_status(),
        "llm-client.md": pool.get_status(),
        "llm-limits.md": AnswerCacheLayer(AnswerCacheConfig()).snapshot(),
        "rate-limiter.md": AdaptiveRate().snapshot(),
        "retry-budget.md": RetryBudget().snapshot(),
        "shared-rate-limiter.md": RedisLimiter(
            "a", TokenBucket(1.0), RedisStore(RedisConfig(url="redis://a"))
        ).snapshot(),
        "single-flight.md": SingleFlight[str, str]().snapshot(),
        "stack.md": CallStats().snapshot(),
    }


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page: str) -> None:
    examples = re.findall(r"```python\n(.*?)```", text(page), flags=re.DOTALL)
    assert examples
    for example in examples:
        run_example(example)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_the_same_shape_and_is_short(page: str) -> None:
    assert re.findall(r"^## (.*)$", text(page), flags=re.MULTILINE) == SECTIONS
    assert len(text(page).splitlines()) <= 120


@pytest.mark.parametrize(
    ("page", "config"),
    [(page, config) for page, configs in CONFIGS.items() for config in configs],
)
def test_the_defaults_of_a_page_are_those_of_the_code(page: str, config: type[Any]) -> None:
    assert documented(page, config.__name__) == actual(config)


def test_every_key_of_a_snapshot_is_on_its_page() -> None:
    missing = [
        f"{page}: {key}"
        for page, snapshot in snapshots().items()
        for key in snapshot
        if f"`{key}`" not in text(page).split("## What it reports")[1]
    ]
    assert missing == []


def test_the_list_of_pages_is_complete_and_every_link_leads_somewhere() -> None:
    for page in PAGES:
        assert f"]({page})" in text("README.md")
    for page in (*PAGES, "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", text(page)):
            assert target.startswith("https://") or (DOCS / target).exists(), (page, target)
