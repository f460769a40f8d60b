"""The strategies that come with the SDK, by name."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable

from shared.infrastructure.balancing.strategies.consistent_hash import ConsistentHash
from shared.infrastructure.balancing.strategies.custom import Custom
from shared.infrastructure.balancing.strategies.least_loaded import LeastLoaded
from shared.infrastructure.balancing.strategies.p2c import PowerOfTwoChoices
from shared.infrastructure.balancing.strategies.peak_ewma import PeakEWMA
from shared.infrastructure.balancing.strategies.prefix import PrefixAffinity
from shared.infrastructure.balancing.strategies.priority import Priority
from shared.infrastructure.balancing.strategies.protocol import BalancingStrategy
from shared.infrastructure.balancing.strategies.random_choice import EvenRandom, WeightedRandom
from shared.infrastructure.balancing.strategies.round_robin import RoundRobin
from shared.infrastructure.resilience import ConfigurationError


class LoadBalancingStrategy(enum.StrEnum):
    """The strategies that come with the SDK."""

    ROUND_ROBIN = "round_robin"
    """In turn, by weight, and smoothly: a heavy host's turns are spread out."""
    RANDOM = "random"
    """Evenly at random, whatever the weights."""
    LEAST_LOADED = "least_loaded"
    """The host with the fewest calls in flight relative to its weight."""
    WEIGHTED_RANDOM = "weighted_random"
    """At random, by weight."""
    P2C = "p2c"
    """The less loaded of two drawn by weight; for many hosts, or many clients of them."""
    PEAK_EWMA = "peak_ewma"
    """Of two, the one that is likely to answer sooner; for hosts of different or varying speed."""
    CONSISTENT_HASH = "consistent_hash"
    """One host for what belongs together: by affinity, else by the beginning of the prompt."""
    PREFIX = "prefix"
    """The host that has read most of the prompt before; for hosts that cache what they read."""
    PRIORITY = "priority"
    """By P2C among the hosts of the lowest tier that has one to call."""


def _priority(rng: random.Random) -> BalancingStrategy:
    return Priority(PowerOfTwoChoices(rng))


_MAKE: dict[LoadBalancingStrategy, Callable[[random.Random], BalancingStrategy]] = {
    LoadBalancingStrategy.ROUND_ROBIN: lambda _: RoundRobin(),
    LoadBalancingStrategy.RANDOM: EvenRandom,
    LoadBalancingStrategy.LEAST_LOADED: LeastLoaded,
    LoadBalancingStrategy.WEIGHTED_RANDOM: WeightedRandom,
    LoadBalancingStrategy.P2C: PowerOfTwoChoices,
    LoadBalancingStrategy.PEAK_EWMA: PeakEWMA,
    LoadBalancingStrategy.CONSISTENT_HASH: ConsistentHash,
    LoadBalancingStrategy.PREFIX: PrefixAffinity,
    LoadBalancingStrategy.PRIORITY: _priority,
}


def strategy_of(
    strategy: LoadBalancingStrategy | BalancingStrategy, rng: random.Random
) -> BalancingStrategy:
    """Return the strategy that is named, or the custom one given; `rng` is a source of chance.

    Raises:
        ConfigurationError: There is none of that name, or the custom one has no suitable `pick`.
    """
    if not isinstance(strategy, str):
        return Custom(strategy)
    try:
        return _MAKE[LoadBalancingStrategy(strategy)](rng)
    except ValueError:
        known = ", ".join(LoadBalancingStrategy)
        raise ConfigurationError(f"no strategy is called {strategy!r}; there are {known}") from None
