"""The arguments of a pool, for those who pass them on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypedDict

import httpx

from shared.infrastructure.balancing.accounting import AnswerCacheConfig, Ledger, PriceTable
from shared.infrastructure.balancing.config import (
    AnswerTimeoutConfig,
    BalanceConfig,
    FallbackConfig,
)
from shared.infrastructure.http import ConnectionPoolConfig, TimeoutConfig
from shared.infrastructure.resilience import (
    AdaptiveBulkheadConfig,
    AdaptiveRateConfig,
    BulkheadConfig,
    CircuitBreakerConfig,
    Clock,
    HealthConfig,
    HedgeConfig,
    Listener,
    RateLimitConfig,
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
)


class PoolOptions(TypedDict, total=False):
    """What guards hosts and calls; `HostPool` explains each, and what it is by default."""

    retry_config: RetryConfig | None
    retry_budget: RetryBudget | RetryBudgetConfig | None
    circuit_breaker_config: CircuitBreakerConfig | None
    rate_limit_config: RateLimitConfig | AdaptiveRateConfig | None
    bulkhead_config: BulkheadConfig | AdaptiveBulkheadConfig | None
    pool_config: ConnectionPoolConfig
    timeout_config: TimeoutConfig
    answer_timeouts: AnswerTimeoutConfig
    balance_config: BalanceConfig
    hedge_config: HedgeConfig | None
    fallback_config: FallbackConfig
    answer_cache: AnswerCacheConfig | None
    prices: PriceTable | None
    ledger: Ledger | None
    health_config: HealthConfig | None
    listeners: Sequence[Listener]
    clock: Clock
    rng: random.Random | None
    transport: httpx.AsyncBaseTransport | None
