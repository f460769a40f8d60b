"""RANDOM and WEIGHTED_RANDOM: by chance, whatever the load."""

from __future__ import annotations

import random
from collections.abc import Sequence

from shared.infrastructure.balancing.strategies.protocol import C, PickContext
from shared.infrastructure.balancing.strategies.sampling import WeightedSampler


class EvenRandom:
    """Evenly at random, whatever the weights."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random

    def pick(self, candidates: Sequence[C], _context: PickContext, /) -> C:
        return candidates[int(self._random() * len(candidates))]


class WeightedRandom:
    """At random, by weight."""

    def __init__(self, rng: random.Random) -> None:
        self._sampler = WeightedSampler(rng)

    def pick(self, candidates: Sequence[C], context: PickContext, /) -> C:
        return candidates[self._sampler.draw(candidates, context.now)]
