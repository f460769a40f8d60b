"""What strategies derive from the candidates, and keep while these stay the same."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate

from shared.infrastructure.balancing.strategies.protocol import Candidate

REFRESH = 0.1
"""Seconds for which weights that were read are good: in slow start they grow by 1/300 in that."""


def is_same(candidates: Sequence[Candidate], seen: Sequence[Candidate]) -> bool:
    """Say whether these are the hosts of before; far cheaper than to look at each of them."""
    return candidates is seen or candidates == seen


class Names:
    """Where among the candidates a host of some name is."""

    def __init__(self) -> None:
        self._seen: Sequence[Candidate] = ()
        self._places: dict[str, int] = {}

    def of(self, candidates: Sequence[Candidate]) -> dict[str, int]:
        """Return the places of the candidates by name: the same dict while they are the same."""
        if not is_same(candidates, self._seen):
            self._places = {host.name: place for place, host in enumerate(candidates)}
            self._seen = candidates
        return self._places


class WeightedSampler:
    """Draws candidates at random, by weight."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random
        self._seen: Sequence[Candidate] = ()
        self._stale_at = 0.0
        self._sums: list[float] = []

    def _read(self, candidates: Sequence[Candidate], now: float) -> list[float]:
        if candidates is not self._seen or now >= self._stale_at:
            self._seen, self._stale_at = candidates, now + REFRESH
            self._sums = list(accumulate([host.weight for host in candidates]))
        return self._sums

    def total(self, candidates: Sequence[Candidate], now: float) -> float:
        """Return the sum of the weights."""
        return self._read(candidates, now)[-1]

    def draw(self, candidates: Sequence[Candidate], now: float) -> int:
        """Return the place of one."""
        sums = self._read(candidates, now)
        return _place(sums, self._random() * sums[-1])

    def draw_two(self, candidates: Sequence[Candidate], now: float) -> tuple[int, int]:
        """Return the places of two distinct ones, of which there are; the first is as `draw`'s."""
        first = self.draw(candidates, now)
        sums = self._sums
        before = sums[first - 1] if first else 0.0
        weight = sums[first] - before
        point = self._random() * (sums[-1] - weight)
        second = _place(sums, point + weight if point >= before else point)
        if second == first:  # by rounding
            second = first - 1 if first else 1
        return first, second


def _place(sums: list[float], point: float) -> int:
    return min(bisect(sums, point), len(sums) - 1)
