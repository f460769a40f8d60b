"""Floors one and two: primitives that decide, and layers that wait; nothing here knows HTTP."""

from shared.infrastructure.resilience.adaptive_bulkhead import (
    AdaptiveBulkhead,
    AdaptiveBulkheadConfig,
    AdaptiveBulkheadLayer,
)
from shared.infrastructure.resilience.adaptive_timeout import (
    AdaptiveTimeout,
    AdaptiveTimeoutConfig,
    AdaptiveTimeoutLayer,
)
from shared.infrastructure.resilience.blocking import (
    THREADS,
    BlockingClock,
    BlockingGuard,
    BlockingKeyed,
    BlockingSingleFlight,
    ThreadClock,
    ThreadEvent,
    blocking_deadline,
)
from shared.infrastructure.resilience.bulkhead import Bulkhead, BulkheadConfig, BulkheadLayer
from shared.infrastructure.resilience.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitState,
    Permit,
)
from shared.infrastructure.resilience.circuit_layers import CircuitBreakerLayer, CircuitGate
from shared.infrastructure.resilience.clock import MONOTONIC, Clock, SystemClock, TimerHandle
from shared.infrastructure.resilience.errors import (
    AttemptTimeoutError,
    BulkheadFullError,
    CallRefusedError,
    CircuitOpenError,
    ConfigurationError,
    DeadlineExceededError,
    MissingExtraError,
    RateLimitExceededError,
    ServiceError,
)
from shared.infrastructure.resilience.events import (
    AttemptEnded,
    AttemptTimedOut,
    BudgetSpent,
    BulkheadResized,
    CallQueued,
    CallRefused,
    CircuitStateChanged,
    DeadlineExceeded,
    Event,
    FallbackUsed,
    FlightJoined,
    HealthStatusChanged,
    HedgeSent,
    HedgeSettled,
    HedgeSkipped,
    LimiterPaused,
    LimiterStoreChanged,
    Listener,
    Listeners,
    RetryGivenUp,
    RetryScheduled,
)
from shared.infrastructure.resilience.fallback import FallbackLayer
from shared.infrastructure.resilience.guard import EndpointGuard
from shared.infrastructure.resilience.health_monitor import (
    HealthConfig,
    HealthLayer,
    HealthMonitor,
    HealthStatus,
)
from shared.infrastructure.resilience.hedge import HedgeLayer
from shared.infrastructure.resilience.hedge_policy import HedgeConfig
from shared.infrastructure.resilience.keyed import Keyed, KeyedLayer
from shared.infrastructure.resilience.layer import (
    PLAIN_CALL,
    ChainLayer,
    Inner,
    Layer,
    LayerOrderWarning,
    Position,
    Semantics,
    Send,
    Verdict,
    describe,
    stack,
)
from shared.infrastructure.resilience.limits import (
    AdaptiveRate,
    AdaptiveRateConfig,
    AllOf,
    RateLimiter,
    Reservation,
    SlidingCounter,
    SlidingWindow,
    TokenBucket,
)
from shared.infrastructure.resilience.limits.redis_limiter import RedisLimiter
from shared.infrastructure.resilience.limits.redis_store import RedisConfig, RedisStore
from shared.infrastructure.resilience.observe import CallStats, ObserveLayer
from shared.infrastructure.resilience.rate_limiter import (
    RateLimitConfig,
    RateLimitLayer,
    RateLimitStrategy,
)
from shared.infrastructure.resilience.retry import RetryConfig, RetryLayer
from shared.infrastructure.resilience.retry_budget import RetryBudget, RetryBudgetConfig
from shared.infrastructure.resilience.shared_rate_limiter import SharedRateLimitLayer
from shared.infrastructure.resilience.single_flight import SingleFlight
from shared.infrastructure.resilience.timeout import (
    AttemptTimeoutLayer,
    DeadlineLayer,
    deadline,
    remaining_time,
)
from shared.infrastructure.resilience.trace import Trace, TraceEntry, trace_call
from shared.infrastructure.resilience.trend import TrendConfig

__all__ = [
    # layer.py
    "ChainLayer",
    "Inner",
    "Layer",
    "LayerOrderWarning",
    "PLAIN_CALL",
    "Position",
    "Semantics",
    "Send",
    "Verdict",
    "describe",
    "stack",
    # errors.py
    "AttemptTimeoutError",
    "BulkheadFullError",
    "CallRefusedError",
    "CircuitOpenError",
    "ConfigurationError",
    "DeadlineExceededError",
    "MissingExtraError",
    "RateLimitExceededError",
    "ServiceError",
    # events.py
    "AttemptEnded",
    "AttemptTimedOut",
    "BudgetSpent",
    "BulkheadResized",
    "CallQueued",
    "CallRefused",
    "CircuitStateChanged",
    "DeadlineExceeded",
    "Event",
    "FallbackUsed",
    "FlightJoined",
    "HealthStatusChanged",
    "HedgeSent",
    "HedgeSettled",
    "HedgeSkipped",
    "LimiterPaused",
    "LimiterStoreChanged",
    "Listener",
    "Listeners",
    "RetryGivenUp",
    "RetryScheduled",
    # trace.py
    "Trace",
    "TraceEntry",
    "trace_call",
    # clock.py
    "Clock",
    "MONOTONIC",
    "SystemClock",
    "TimerHandle",
    # circuit_breaker.py
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitState",
    "Permit",
    # circuit_layers.py
    "CircuitBreakerLayer",
    "CircuitGate",
    # limits
    "AdaptiveRate",
    "AdaptiveRateConfig",
    "AllOf",
    "RateLimiter",
    "Reservation",
    "SlidingCounter",
    "SlidingWindow",
    "TokenBucket",
    "RedisConfig",
    "RedisLimiter",
    "RedisStore",
    # rate_limiter.py
    "RateLimitConfig",
    "RateLimitLayer",
    "RateLimitStrategy",
    # shared_rate_limiter.py
    "SharedRateLimitLayer",
    # retry.py
    "RetryConfig",
    "RetryLayer",
    # retry_budget.py
    "RetryBudget",
    "RetryBudgetConfig",
    # adaptive_timeout.py
    "AdaptiveTimeout",
    "AdaptiveTimeoutConfig",
    "AdaptiveTimeoutLayer",
    # trend.py
    "TrendConfig",
    # timeout.py
    "AttemptTimeoutLayer",
    "DeadlineLayer",
    "deadline",
    "remaining_time",
    # bulkhead.py
    "Bulkhead",
    "BulkheadConfig",
    "BulkheadLayer",
    # adaptive_bulkhead.py
    "AdaptiveBulkhead",
    "AdaptiveBulkheadConfig",
    "AdaptiveBulkheadLayer",
    # health_monitor.py
    "HealthConfig",
    "HealthLayer",
    "HealthMonitor",
    "HealthStatus",
    # observe.py
    "CallStats",
    "ObserveLayer",
    # guard.py
    "EndpointGuard",
    # hedge.py
    "HedgeConfig",
    "HedgeLayer",
    # fallback.py
    "FallbackLayer",
    # single_flight.py
    "SingleFlight",
    # keyed.py
    "Keyed",
    "KeyedLayer",
    # blocking
    "BlockingClock",
    "BlockingGuard",
    "BlockingKeyed",
    "BlockingSingleFlight",
    "THREADS",
    "ThreadClock",
    "ThreadEvent",
    "blocking_deadline",
]
