"""Which of several equal hosts gets the next call."""

from __future__ import annotations

import enum
import random
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Protocol

from shared.infrastructure.balancing.hosts import Host
from shared.infrastructure.resilience import ConfigurationError

_load = attrgetter("load")
_weight = attrgetter("weight")


class BalancingStrategy(Protocol):
    """Picks a host; a custom one goes wherever a `LoadBalancingStrategy` does."""

    def pick(self, candidates: Sequence[Host], /) -> Host:
        """Return one of `candidates`, of which there is at least one."""
        ...


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


def strategy_of(
    strategy: LoadBalancingStrategy | BalancingStrategy, rng: random.Random
) -> BalancingStrategy:
    """Return the strategy that is named, or the custom one given; `rng` is a source of chance."""
    match strategy:
        case LoadBalancingStrategy.ROUND_ROBIN:
            return RoundRobin()
        case LoadBalancingStrategy.RANDOM:
            return Random(rng)
        case LoadBalancingStrategy.LEAST_LOADED:
            return LeastLoaded(rng)
        case LoadBalancingStrategy.WEIGHTED_RANDOM:
            return WeightedRandom(rng)
        case _:
            return Custom(strategy)


class Custom:
    """A strategy from outside, whose picks are checked."""

    def __init__(self, strategy: BalancingStrategy) -> None:
        if not callable(getattr(strategy, "pick", None)):
            raise ConfigurationError(
                f"{strategy!r} is no strategy: give a LoadBalancingStrategy or an object with pick"
            )
        self._strategy = strategy

    def pick(self, candidates: Sequence[Host], /) -> Host:
        host = self._strategy.pick(candidates)
        if host not in candidates:
            name = type(self._strategy).__name__
            raise ConfigurationError(f"{name}.pick returned {host!r}, which is no candidate")
        return host


class RoundRobin:
    """Smooth weighted round robin.

    Every candidate is credited its weight; the one with the most credit is picked and pays what
    all of them were credited. Source: nginx, ngx_http_upstream_round_robin.c.
    """

    def pick(self, candidates: Sequence[Host], /) -> Host:
        best, total = candidates[0], 0.0
        most = float("-inf")
        for host in candidates:
            weight = host.weight
            total += weight
            host.credit = credit = host.credit + weight
            if credit > most:
                best, most = host, credit
        best.credit -= total
        return best


class Random:
    """Evenly at random."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, candidates: Sequence[Host], /) -> Host:
        return self._rng.choice(candidates)


class LeastLoaded:
    """Least load; among equals at random, so that callers elsewhere do not all choose the same."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, candidates: Sequence[Host], /) -> Host:
        least = min(map(_load, candidates))
        return self._rng.choice([host for host in candidates if host.load == least])


class WeightedRandom:
    """At random, by weight."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._seen: Sequence[Host] = ()
        self._sums: list[float] = []

    def pick(self, candidates: Sequence[Host], /) -> Host:
        if candidates is not self._seen:
            # While nothing is wrong, a pool asks with the very same tuple every time.
            self._seen, self._sums = candidates, list(accumulate(map(_weight, candidates)))
        point = self._rng.random() * self._sums[-1]
        return candidates[min(bisect(self._sums, point), len(candidates) - 1)]
