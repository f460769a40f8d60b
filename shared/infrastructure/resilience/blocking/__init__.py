"""The layers for synchronous code: threads walk through them, no event loop is needed."""

from shared.infrastructure.resilience.blocking.clock import (
    THREADS,
    BlockingClock,
    ThreadClock,
    ThreadEvent,
)
from shared.infrastructure.resilience.blocking.deadline import blocking_deadline
from shared.infrastructure.resilience.blocking.guard import BlockingGuard
from shared.infrastructure.resilience.blocking.keyed import BlockingKeyed
from shared.infrastructure.resilience.blocking.single_flight import BlockingSingleFlight

__all__ = [
    "BlockingClock",
    "BlockingGuard",
    "BlockingKeyed",
    "BlockingSingleFlight",
    "THREADS",
    "ThreadClock",
    "ThreadEvent",
    "blocking_deadline",
]
