"""Hosts as a strategy sees them, and calls that take their time on a clock of their own."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.infrastructure.balancing.call import RequestFacts
from shared.infrastructure.balancing.hosts.latency import PeakEWMA
from shared.infrastructure.balancing.strategies import (
    BalancingStrategy,
    LoadBalancingStrategy,
    PickContext,
    strategy_of,
)


@dataclass(slots=True, eq=False)
class FakeHost:
    name: str
    weight: float = 1.0
    in_flight: int = 0
    priority: int = 0
    turn: float = 0.0
    mean: PeakEWMA = field(default_factory=PeakEWMA)

    @property
    def load(self) -> float:
        return self.in_flight / self.weight

    def latency(self, model: str | None, now: float) -> float | None:
        return self.mean.read(now)


class Prompts:
    """A dialect of which a strategy wants the prompt only."""

    def prompt(self, payload: Mapping[str, str]) -> str:
        return payload["prompt"]


def pool(*weights: float) -> tuple[FakeHost, ...]:
    """Return hosts of these weights, called a, b, c, …."""
    return tuple(FakeHost(chr(ord("a") + number), w) for number, w in enumerate(weights))


def named(name: str, seed: int = 5) -> BalancingStrategy:
    return strategy_of(LoadBalancingStrategy(name), random.Random(seed))


def at(now: float = 0.0, *, prompt: str | None = None, affinity: str | None = None) -> PickContext:
    dialect: Any = Prompts()
    payload = None if prompt is None else {"prompt": prompt}
    return PickContext(RequestFacts(dialect=dialect, payload=payload, affinity=affinity), now)


def picks(strategy: BalancingStrategy, hosts: Sequence[FakeHost], count: int) -> str:
    """Return the names of the hosts that are picked, while time stands still."""
    return "".join(strategy.pick(hosts, at()).name for _ in range(count))


def shares(names: Sequence[str] | Counter[str]) -> dict[str, float]:
    counts = Counter(names)
    return {name: count / counts.total() for name, count in counts.items()}


def calls(
    strategy: BalancingStrategy,
    hosts: Sequence[FakeHost],
    count: int,
    *,
    every: float,
    takes: Callable[[FakeHost], float],
) -> Counter[str]:
    """Start a call `every` so many seconds, and return how many each host was given."""
    given: Counter[str] = Counter()
    ends: list[tuple[float, int, FakeHost, float]] = []
    for number in range(count):
        now = number * every
        while ends and ends[0][0] <= now:
            end, _, host, seconds = heapq.heappop(ends)
            host.in_flight -= 1
            host.mean.observe(seconds, end)
        host = strategy.pick(hosts, at(now))
        host.in_flight += 1
        given[host.name] += 1
        seconds = takes(host)
        heapq.heappush(ends, (now + seconds, number, host, seconds))
    return given
