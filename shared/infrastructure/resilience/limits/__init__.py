"""Rate limiters, one algorithm a file; all share the line, the pauses and the reservations."""

from shared.infrastructure.resilience.limits.adaptive_rate import AdaptiveRate, AdaptiveRateConfig
from shared.infrastructure.resilience.limits.composite import AllOf
from shared.infrastructure.resilience.limits.limiter import RateLimiter
from shared.infrastructure.resilience.limits.reservation import Reservation
from shared.infrastructure.resilience.limits.sliding_counter import SlidingCounter
from shared.infrastructure.resilience.limits.sliding_window import SlidingWindow
from shared.infrastructure.resilience.limits.token_bucket import TokenBucket

__all__ = [
    "AdaptiveRate",
    "AdaptiveRateConfig",
    "AllOf",
    "RateLimiter",
    "Reservation",
    "SlidingCounter",
    "SlidingWindow",
    "TokenBucket",
]
