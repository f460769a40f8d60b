"""PEAK_EWMA: the power of two choices, by how long a call is going to take."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

from shared.infrastructure.balancing.strategies.protocol import C, Candidate, PickContext
from shared.infrastructure.balancing.strategies.sampling import REFRESH

_SAMPLES = 32
_UNKNOWN = 1.0  # seconds, where nothing is known of any host


class PeakEWMA:
    """Of two distinct hosts, the one with the lower latency x (in flight + 1) / weight.

    A host whose latency is not known, such as a new one, counts as an average one: it is neither
    flooded nor starved. Source: Finagle's `p2cPeakEwma`.
    """

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random
        self._typical: dict[str | None, float] = {}
        self._stale_at = 0.0

    def pick(self, candidates: Sequence[C], context: PickContext, /) -> C:
        count = len(candidates)
        if count == 1:
            return candidates[0]
        first = int(self._random() * count)
        second = int(self._random() * (count - 1))
        one, other = candidates[first], candidates[second + (second >= first)]
        model, now = context.facts.model, context.now
        latency, of_other = one.latency(model, now), other.latency(model, now)
        if latency is None or of_other is None:
            typical = self._median(candidates, model, now)
            latency = typical if latency is None else latency
            of_other = typical if of_other is None else of_other
        cost = latency * (one.in_flight + 1) / one.weight
        return other if of_other * (other.in_flight + 1) / other.weight < cost else one

    def _median(self, candidates: Sequence[Candidate], model: str | None, now: float) -> float:
        """Return the median of the known latencies: of many hosts, of a part of them."""
        if now >= self._stale_at:
            self._stale_at = now + REFRESH
            self._typical.clear()
        typical = self._typical.get(model)
        if typical is None:
            step = 1 + len(candidates) // _SAMPLES
            part = candidates[int(self._random() * step) :: step]
            known = [each for host in part if (each := host.latency(model, now)) is not None]
            typical = self._typical[model] = statistics.median(known) if known else _UNKNOWN
        return typical
