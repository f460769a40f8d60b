"""LEAST_LOADED: the fewest calls in flight, relative to the weight."""

from __future__ import annotations

import random
from collections.abc import Sequence

from shared.infrastructure.balancing.strategies.protocol import C, PickContext
from shared.infrastructure.balancing.strategies.sampling import WeightedSampler


class LeastLoaded:
    """The least load; among equals at random, by weight.

    By chance, so that clients elsewhere, who know as little, do not all choose the same host.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._sampler = WeightedSampler(rng)
        self._were_idle = True

    def pick(self, candidates: Sequence[C], context: PickContext, /) -> C:
        if self._were_idle:  # nothing is less than no load: no need to look at all of them
            host = candidates[self._sampler.draw(candidates, context.now)]
            if host.load <= 0.0:
                return host
        least = min([host.load for host in candidates])
        equals = [host for host in candidates if host.load <= least]
        self._were_idle = least <= 0.0
        if len(equals) == 1:
            return equals[0]
        return self._rng.choices(equals, [host.weight for host in equals])[0]
