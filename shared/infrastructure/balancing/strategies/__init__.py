"""Strategies: which of several hosts gets the next call."""

from shared.infrastructure.balancing.strategies.named import LoadBalancingStrategy, strategy_of
from shared.infrastructure.balancing.strategies.priority import Priority
from shared.infrastructure.balancing.strategies.protocol import (
    BalancingStrategy,
    Candidate,
    PickContext,
)

__all__ = [
    # named.py
    "LoadBalancingStrategy",
    "strategy_of",
    # priority.py
    "Priority",
    # protocol.py
    "BalancingStrategy",
    "Candidate",
    "PickContext",
]
