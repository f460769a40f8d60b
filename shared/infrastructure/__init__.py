"""The public names of the SDK, grouped by room; each room is imported when first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from shared.infrastructure._version import __version__

if TYPE_CHECKING:
    from shared.infrastructure.balancing import (
        AnswerTimeoutConfig,
        BalanceConfig,
        DistributedLLMClient,
        FallbackConfig,
        LLMHost,
        LoadBalancingStrategy,
        NoHostAvailableError,
        StreamInterruptedError,
        balanced_transport,
        route_of,
    )
    from shared.infrastructure.http import (
        ConnectionPoolConfig,
        EnhancedHTTPClient,
        ResilientTransport,
        TimeoutConfig,
        UpstreamError,
    )
    from shared.infrastructure.local_embeddings import (
        LocalEmbeddingConfig,
        LocalEmbeddingModel,
        LocalEmbeddingPool,
        ModelBackend,
    )
    from shared.infrastructure.resilience import (
        AttemptTimeoutError,
        Bulkhead,
        BulkheadConfig,
        BulkheadFullError,
        CallRefusedError,
        CircuitBreaker,
        CircuitBreakerConfig,
        CircuitOpenError,
        CircuitState,
        ConfigurationError,
        DeadlineExceededError,
        HealthConfig,
        HealthMonitor,
        HealthStatus,
        Keyed,
        MissingExtraError,
        RateLimitConfig,
        RateLimitExceededError,
        RateLimitStrategy,
        RetryBudget,
        RetryBudgetConfig,
        RetryConfig,
        ServiceError,
        SlidingWindow,
        TokenBucket,
        Trace,
        deadline,
        describe,
        stack,
        trace_call,
    )

__all__ = [
    "__version__",
    # resilience
    "AttemptTimeoutError",
    "Bulkhead",
    "BulkheadConfig",
    "BulkheadFullError",
    "CallRefusedError",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitOpenError",
    "CircuitState",
    "ConfigurationError",
    "DeadlineExceededError",
    "HealthConfig",
    "HealthMonitor",
    "HealthStatus",
    "Keyed",
    "MissingExtraError",
    "RateLimitConfig",
    "RateLimitExceededError",
    "RateLimitStrategy",
    "RetryBudget",
    "RetryBudgetConfig",
    "RetryConfig",
    "ServiceError",
    "SlidingWindow",
    "TokenBucket",
    "Trace",
    "deadline",
    "describe",
    "stack",
    "trace_call",
    # http
    "ConnectionPoolConfig",
    "EnhancedHTTPClient",
    "ResilientTransport",
    "TimeoutConfig",
    "UpstreamError",
    # balancing
    "AnswerTimeoutConfig",
    "BalanceConfig",
    "DistributedLLMClient",
    "FallbackConfig",
    "LLMHost",
    "LoadBalancingStrategy",
    "NoHostAvailableError",
    "StreamInterruptedError",
    "balanced_transport",
    "route_of",
    # local_embeddings
    "LocalEmbeddingConfig",
    "LocalEmbeddingModel",
    "LocalEmbeddingPool",
    "ModelBackend",
]

_ROOMS = ("resilience", "http", "balancing", "local_embeddings")


def __getattr__(name: str) -> Any:
    if name in __all__:
        # Lightest room first: a breaker does not need httpx, nor a client numpy.
        for room in _ROOMS:
            module = importlib.import_module(f"shared.infrastructure.{room}")
            if name in module.__all__:
                value = getattr(module, name)
                globals()[name] = value
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
