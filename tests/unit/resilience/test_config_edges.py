"""Every config: frozen, without unknown fields, with the defaults and ranges it documents."""

import inspect
import math
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from shared.infrastructure import resilience
from shared.infrastructure.resilience import (
    AdaptiveBulkheadConfig,
    AdaptiveRateConfig,
    AdaptiveTimeoutConfig,
    BulkheadConfig,
    CircuitBreakerConfig,
    HealthConfig,
    HedgeConfig,
    RateLimitConfig,
    RetryBudgetConfig,
    RetryConfig,
    TrendConfig,
)
from shared.infrastructure.resilience.trip_rules import TripConfig

Config = type[BaseModel]
REQUIRED: dict[Config, dict[str, Any]] = {
    BulkheadConfig: {"max_concurrent": 2},
    RateLimitConfig: {"requests_per_second": 10.0},
    AdaptiveTimeoutConfig: {"maximum": 10.0},
}
CONFIGS: list[Config] = [
    *REQUIRED,
    AdaptiveBulkheadConfig,
    AdaptiveRateConfig,
    CircuitBreakerConfig,
    HealthConfig,
    HedgeConfig,
    RetryBudgetConfig,
    RetryConfig,
    TrendConfig,
    TripConfig,
]

DEFAULTS: dict[Config, dict[str, Any]] = {
    AdaptiveBulkheadConfig: {
        "initial_concurrent": 20,
        "min_concurrent": 1,
        "max_concurrent": 200,
        "tolerance": 1.5,
        "queue": 4,
        "smoothing": 0.5,
        "max_queue": None,
        "max_wait": None,
    },
    AdaptiveRateConfig: {
        "initial_rate": None,
        "min_rate": 0.5,
        "max_rate": None,
        "burst_size": 1,
        "beta": 0.7,
        "scale": 0.4,
        "max_wait": 60.0,
    },
    BulkheadConfig: {"max_queue": None, "max_wait": None},
    RateLimitConfig: {
        "burst_size": None,
        "strategy": "token_bucket",
        "window": 1.0,
        "max_wait": 60.0,
    },
    CircuitBreakerConfig: {
        "failure_threshold": 5,
        "failure_rate": 0.5,
        "slow_call_duration": None,
        "slow_call_rate": 0.8,
        "minimum_calls": 20,
        "window_seconds": 30.0,
        "window_calls": None,
        "success_threshold": 2,
        "timeout": 60.0,
        "max_timeout": 300.0,
        "half_open_max_calls": 1,
        "probe_lease": 30.0,
        "ramp_up": 0.0,
        "obey_retry_after": False,
    },
    AdaptiveTimeoutConfig: {
        "minimum": 0.1,
        "percentile": 0.99,
        "factor": 2.0,
        "min_samples": 50,
        "window": 300.0,
    },
    TrendConfig: {"lasting": 3.0, "evidence": 12.0},
    HedgeConfig: {
        "delay": None,
        "max_hedges": 1,
        "percentile": 0.95,
        "min_samples": 20,
        "window": 60.0,
        "busy_pause": 1.0,
    },
    HealthConfig: {
        "interval": 30.0,
        "edge_interval": 1.0,
        "jitter": 0.1,
        "timeout": 5.0,
        "time_constant": 10.0,
        "minimum_calls": 10,
        "unhealthy_after": 3,
        "unhealthy_error_rate": 0.5,
        "recovered_error_rate": 0.25,
        "degraded_error_rate": 0.05,
        "degraded_response_time": 5.0,
        "healthy_after": 2,
        "dwell": 5.0,
        "history": 100,
    },
    RetryBudgetConfig: {
        "capacity": 100.0,
        "cost": 10.0,
        "throttle_cost": 5.0,
        "success_refund": 1.0,
        "min_retries_per_second": 1.0,
    },
    RetryConfig: {
        "max_retries": 3,
        "base_delay": 1.0,
        "max_delay": 60.0,
        "exponential_base": 2.0,
        "jitter": True,
        "retry_busy": False,
        "max_retry_after": 60.0,
    },
}

# The end of a range: a value that is accepted, and one just outside.
ENDS: list[tuple[Config, str, float, float]] = [
    (AdaptiveBulkheadConfig, "initial_concurrent", 1, 0),
    (AdaptiveBulkheadConfig, "min_concurrent", 1, 0),
    (AdaptiveBulkheadConfig, "tolerance", 1.0, 0.99),
    (AdaptiveBulkheadConfig, "tolerance", 1e9, math.inf),
    (AdaptiveBulkheadConfig, "queue", 1, 0),
    (AdaptiveBulkheadConfig, "smoothing", 0.01, 0.0),
    (AdaptiveBulkheadConfig, "smoothing", 1.0, 1.01),
    (AdaptiveBulkheadConfig, "max_queue", 0, -1),
    (AdaptiveBulkheadConfig, "max_wait", 0.0, -0.01),
    (AdaptiveRateConfig, "initial_rate", 1e9, math.inf),
    (AdaptiveRateConfig, "min_rate", 0.01, 0.0),
    (AdaptiveRateConfig, "min_rate", 1e9, math.inf),
    (AdaptiveRateConfig, "max_rate", 0.5, 0.0),
    (AdaptiveRateConfig, "max_rate", 1e9, math.inf),
    (AdaptiveRateConfig, "burst_size", 1, 0),
    (AdaptiveRateConfig, "beta", 0.01, 0.0),
    (AdaptiveRateConfig, "beta", 0.99, 1.0),
    (AdaptiveRateConfig, "scale", 0.01, 0.0),
    (AdaptiveRateConfig, "scale", 1e9, math.inf),
    (AdaptiveRateConfig, "max_wait", 0.0, -0.01),
    (BulkheadConfig, "max_concurrent", 1, 0),
    (BulkheadConfig, "max_queue", 0, -1),
    (BulkheadConfig, "max_wait", 0.0, -0.01),
    (RateLimitConfig, "requests_per_second", 0.01, 0.0),
    (RateLimitConfig, "burst_size", 1, 0),
    (RateLimitConfig, "window", 0.01, 0.0),
    (RateLimitConfig, "max_wait", 0.0, -0.01),
    (CircuitBreakerConfig, "failure_threshold", 1, 0),
    (CircuitBreakerConfig, "failure_rate", 0.01, 0.0),
    (CircuitBreakerConfig, "failure_rate", 1.0, 1.01),
    (CircuitBreakerConfig, "slow_call_duration", 0.01, 0.0),
    (CircuitBreakerConfig, "slow_call_rate", 0.01, 0.0),
    (CircuitBreakerConfig, "slow_call_rate", 1.0, 1.01),
    (CircuitBreakerConfig, "minimum_calls", 1, 0),
    (CircuitBreakerConfig, "window_seconds", 0.01, 0.0),
    (CircuitBreakerConfig, "success_threshold", 1, 0),
    (CircuitBreakerConfig, "timeout", 0.01, 0.0),
    (CircuitBreakerConfig, "max_timeout", 0.01, 0.0),
    (CircuitBreakerConfig, "half_open_max_calls", 1, 0),
    (CircuitBreakerConfig, "probe_lease", 0.01, 0.0),
    (CircuitBreakerConfig, "ramp_up", 0.0, -0.01),
    (AdaptiveTimeoutConfig, "maximum", 0.5, 0.0),
    (AdaptiveTimeoutConfig, "maximum", 1e9, math.inf),
    (AdaptiveTimeoutConfig, "minimum", 0.01, 0.0),
    (AdaptiveTimeoutConfig, "minimum", 10.0, math.inf),
    (AdaptiveTimeoutConfig, "percentile", 0.01, 0.0),
    (AdaptiveTimeoutConfig, "percentile", 0.99, 1.0),
    (AdaptiveTimeoutConfig, "factor", 1.0, 0.99),
    (AdaptiveTimeoutConfig, "factor", 1e9, math.inf),
    (AdaptiveTimeoutConfig, "min_samples", 1, 0),
    (AdaptiveTimeoutConfig, "window", 0.01, 0.0),
    (AdaptiveTimeoutConfig, "window", 1e9, math.inf),
    (TrendConfig, "lasting", 0.01, 0.0),
    (TrendConfig, "lasting", 1e9, math.inf),
    (TrendConfig, "evidence", 0.01, 0.0),
    (TrendConfig, "evidence", 1e9, math.inf),
    (HedgeConfig, "delay", 0.0, -0.01),
    (HedgeConfig, "max_hedges", 1, 0),
    (HedgeConfig, "percentile", 0.01, 0.0),
    (HedgeConfig, "percentile", 0.99, 1.0),
    (HedgeConfig, "min_samples", 1, 0),
    (HedgeConfig, "window", 0.01, 0.0),
    (HedgeConfig, "busy_pause", 0.0, -0.01),
    (HealthConfig, "interval", 0.01, 0.0),
    (HealthConfig, "interval", 1e9, math.inf),
    (HealthConfig, "edge_interval", 0.01, 0.0),
    (HealthConfig, "edge_interval", 1e9, math.inf),
    (HealthConfig, "jitter", 0.0, -0.01),
    (HealthConfig, "jitter", 1.0, 1.01),
    (HealthConfig, "timeout", 0.01, 0.0),
    (HealthConfig, "timeout", 1e9, math.inf),
    (HealthConfig, "time_constant", 0.01, 0.0),
    (HealthConfig, "time_constant", 1e9, math.inf),
    (HealthConfig, "minimum_calls", 1, 0),
    (HealthConfig, "unhealthy_after", 1, 0),
    (HealthConfig, "unhealthy_error_rate", 1.0, 1.01),
    (HealthConfig, "recovered_error_rate", 0.01, 0.0),
    (HealthConfig, "recovered_error_rate", 0.5, 1.01),
    (HealthConfig, "degraded_error_rate", 0.01, 0.0),
    (HealthConfig, "degraded_error_rate", 1.0, 1.01),
    (HealthConfig, "degraded_response_time", 0.01, 0.0),
    (HealthConfig, "healthy_after", 1, 0),
    (HealthConfig, "dwell", 0.0, -0.01),
    (HealthConfig, "dwell", 1e9, math.inf),
    (HealthConfig, "history", 1, 0),
    (RetryBudgetConfig, "cost", 0.01, 0.0),
    (RetryBudgetConfig, "throttle_cost", 0.01, 0.0),
    (RetryBudgetConfig, "success_refund", 0.0, -0.01),
    (RetryBudgetConfig, "min_retries_per_second", 0.0, -0.01),
    (RetryConfig, "max_retries", 0, -1),
    (RetryConfig, "base_delay", 0.0, -0.01),
    (RetryConfig, "max_delay", 0.0, -0.01),
    (RetryConfig, "exponential_base", 1.0, 0.99),
    (RetryConfig, "max_retry_after", 0.0, -0.01),
]


def build(config: Config, **fields: Any) -> BaseModel:
    return config(**{**REQUIRED.get(config, {}), **fields})


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_never_changes_and_takes_no_field_it_does_not_know(config: Config) -> None:
    made = build(config)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, next(iter(config.model_fields)), 1)
    with pytest.raises(ValidationError, match="Extra inputs"):
        build(config, no_such_field=1)


@pytest.mark.parametrize("config", DEFAULTS)
def test_a_config_has_the_defaults_it_documents(config: Config) -> None:
    made = build(config).model_dump()
    assert {name: made[name] for name in DEFAULTS[config]} == DEFAULTS[config]


@pytest.mark.parametrize(("config", "field", "inside", "outside"), ENDS)
def test_a_range_ends_where_it_is_documented_to(
    config: Config, field: str, inside: float, outside: float
) -> None:
    assert getattr(build(config, **{field: inside}), field) == inside
    with pytest.raises(ValidationError, match=field):
        build(config, **{field: outside})


def test_a_budget_may_be_as_small_as_one_retry_and_not_smaller_than_nothing() -> None:
    assert RetryBudgetConfig(capacity=0.5, cost=0.5, throttle_cost=0.5).capacity == 0.5
    with pytest.raises(ValidationError, match="capacity"):
        RetryBudgetConfig(capacity=0.0, cost=0.5, throttle_cost=0.5)


def test_a_window_of_calls_may_be_as_short_as_its_minimum() -> None:
    assert CircuitBreakerConfig(window_calls=1, minimum_calls=1).window_calls == 1
    with pytest.raises(ValidationError, match="window_calls"):
        CircuitBreakerConfig(window_calls=0, minimum_calls=1)


def test_what_makes_a_service_unhealthy_may_be_what_it_recovers_from() -> None:
    assert HealthConfig(unhealthy_error_rate=0.25).recovered_error_rate == 0.25
    with pytest.raises(ValidationError, match="at most"):
        HealthConfig(unhealthy_error_rate=0.24)


def test_what_is_given_no_name_speaks_of_the_service() -> None:
    classes = [thing for thing in vars(resilience).values() if inspect.isclass(thing)]
    makers = [vars(kind)["__init__"] for kind in classes if "__init__" in vars(kind)]
    defaults = {
        maker.__qualname__.removesuffix(".__init__"): parameter.default
        for maker in [*makers, BulkheadConfig.build, AdaptiveBulkheadConfig.build]
        for name, parameter in inspect.signature(maker).parameters.items()
        if name == "name" and parameter.default is not inspect.Parameter.empty
    }
    assert {"Bulkhead", "BulkheadConfig.build", "HedgeLayer", "RateLimitLayer"} <= set(defaults)
    assert defaults.pop("SingleFlight") == "flight"
    assert set(defaults.values()) == {"service"}
