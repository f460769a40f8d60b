"""P2C: the power of two choices."""

from __future__ import annotations

import random
from collections.abc import Sequence

from shared.infrastructure.balancing.strategies.protocol import C, PickContext
from shared.infrastructure.balancing.strategies.sampling import WeightedSampler


class PowerOfTwoChoices:
    """The less loaded of two distinct hosts, drawn by weight; of equals, the first drawn.

    Almost as even as to look at all of them, and no herd runs to the one that looks best.
    Source: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001.
    """

    def __init__(self, rng: random.Random) -> None:
        self._sampler = WeightedSampler(rng)

    def pick(self, candidates: Sequence[C], context: PickContext, /) -> C:
        if len(candidates) == 1:
            return candidates[0]
        first, second = self._sampler.draw_two(candidates, context.now)
        one, other = candidates[first], candidates[second]
        return other if other.load < one.load else one
