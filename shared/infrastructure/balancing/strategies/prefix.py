"""PREFIX: to the host that has read most of the prompt before, and has it in its cache."""

from __future__ import annotations

import random
from collections.abc import Sequence

from shared.infrastructure.balancing.strategies.p2c import PowerOfTwoChoices
from shared.infrastructure.balancing.strategies.prefix_index import (
    BLOCK,
    MAX_BLOCKS,
    PrefixIndex,
    blocks_of,
)
from shared.infrastructure.balancing.strategies.prompts import prompt_of
from shared.infrastructure.balancing.strategies.protocol import C, Candidate, PickContext
from shared.infrastructure.balancing.strategies.sampling import Names

MIN_MATCH = 0.3
"""Share of the prompt that a host must have read."""

MAX_EXCESS, MAX_RATIO = 64, 1.5
"""A host with that many calls more than the least loaded, and that many times its load, is passed
over."""


class PrefixAffinity:
    """The host that has read the longest beginning of the prompt, if it is not overloaded.

    Else, and for prompts shorter than a block, the power of two choices decides. Source: the
    cache-aware policy of the SGLang router, and its thresholds.
    """

    def __init__(self, rng: random.Random) -> None:
        self._otherwise = PowerOfTwoChoices(rng)
        self._index = PrefixIndex()
        self._names = Names()

    def pick(self, candidates: Sequence[C], context: PickContext, /) -> C:
        prompt = prompt_of(context.facts)
        blocks = blocks_of(prompt, context.facts.model)
        if not blocks:
            return self._otherwise.pick(candidates, context)
        places = self._names.of(candidates)
        names, count = self._index.match(blocks, places)
        host: C | None = None
        if count * BLOCK >= MIN_MATCH * min(len(prompt), BLOCK * MAX_BLOCKS):
            owners = [candidates[places[name]] for name in names]
            host = min(owners, key=lambda owner: owner.load)
        if host is None or _is_overloaded(host, candidates):
            host = self._otherwise.pick(candidates, context)
        self._index.record(blocks, host.name)
        return host


def _is_overloaded(host: Candidate, candidates: Sequence[Candidate]) -> bool:
    if host.in_flight <= MAX_EXCESS:
        return False
    load: float = host.load
    least: float = min([each.load for each in candidates])
    return (load - least) * host.weight > MAX_EXCESS and load > MAX_RATIO * least
