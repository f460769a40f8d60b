"""PRIORITY: the lowest tier that has a host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from shared.infrastructure.balancing.strategies.protocol import (
    BalancingStrategy,
    C,
    Candidate,
    PickContext,
)
from shared.infrastructure.balancing.strategies.sampling import is_same


class Priority:
    """The hosts of the lowest tier that has a candidate.

    Args:
        within: Picks one of them.
    """

    def __init__(self, within: BalancingStrategy) -> None:
        self._within = within
        self._seen: Sequence[Candidate] = ()
        self._tier: Sequence[Candidate] = ()

    def pick(self, candidates: Sequence[C], context: PickContext, /) -> C:
        if not is_same(candidates, self._seen):
            lowest = min(host.priority for host in candidates)
            tier = tuple(host for host in candidates if host.priority == lowest)
            self._seen = candidates
            # The same tuple for the same hosts, so that they are known again within the tier.
            self._tier = self._tier if is_same(tier, self._tier) else tier
        return self._within.pick(cast("Sequence[C]", self._tier), context)
