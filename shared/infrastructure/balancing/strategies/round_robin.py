"""ROUND_ROBIN: in turn, by weight, the turns of a heavy host spread out."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from shared.infrastructure.balancing.strategies.protocol import C, Candidate, PickContext
from shared.infrastructure.balancing.strategies.sampling import REFRESH, is_same

_NOBODY: frozenset[Candidate] = frozenset()


class RoundRobin:
    """Smooth weighted round robin, by virtual time.

    In a unit of virtual time each host is due as many turns as it has weight. Of the hosts whose
    next turn has come, the one is picked whose turn has to be over first. So none is ever a whole
    turn ahead of its share, or behind it, which is smoother than nginx's way, and it takes
    O(log n). Source: Bennett and Zhang, WF2Q: Worst-case Fair Weighted Fair Queueing, 1996.

    Virtual time passes for those that are candidates only: a host that is not there is owed nothing
    for that, and comes back as far ahead or behind as it was, at most by a turn. Candidates that
    come but once, as those of a further attempt that leaves out a host which failed, are not lined
    up: the one whose turn comes first is picked, and that turn is shared among them.
    """

    def __init__(self) -> None:
        self._now = self._began = 0.0  # virtual, and as it was when they were lined up
        self._slot = 0.0  # virtual time that a pick takes
        self._lined_up: Sequence[Candidate] = ()
        self._members = _NOBODY
        self._weights: list[float] = []
        self._stale_at = 0.0
        self._passing: Sequence[Candidate] = ()
        self._waiting: list[tuple[float, int]] = []  # begin of turn, place
        self._ready: list[tuple[float, int, float]] = []  # end of turn, place, begin

    def pick(self, candidates: Sequence[C], context: PickContext, /) -> C:
        if is_same(candidates, self._lined_up):
            if candidates is not self._lined_up or context.now >= self._stale_at:
                self._reweigh(candidates, context.now)
        elif is_same(candidates, self._passing):  # who comes twice in a row will come again
            self._line_up(candidates, context.now)
        else:
            self._passing = candidates
            return self._once(candidates)
        self._passing = ()
        return self._next(candidates)

    def _next(self, candidates: Sequence[C]) -> C:
        waiting, ready = self._waiting, self._ready
        now = self._now + self._slot / 2
        while True:
            while waiting and (waiting[0][0] <= now or not ready):
                begin, place = heappop(waiting)
                host = candidates[place]
                if host.turn != begin:  # it had a turn among other candidates
                    heappush(waiting, (host.turn, place))
                    continue
                heappush(ready, (begin + 1.0 / host.weight, place, begin))
            _, place, begin = heappop(ready)
            host = candidates[place]
            if host.turn == begin:
                break
            heappush(waiting, (host.turn, place))
        self._now += self._slot
        host.turn = begin + 1.0 / host.weight
        heappush(waiting, (host.turn, place))
        return host

    def _once(self, candidates: Sequence[C]) -> C:
        passed, members = self._now - self._began, self._members
        turns = [host.turn - passed if host in members else host.turn for host in candidates]
        host = candidates[turns.index(min(turns))]
        host.turn += 1.0 / host.weight
        share = 1.0 / sum(one.weight for one in candidates)
        for one in candidates:
            one.turn -= share
        return host

    def _reweigh(self, candidates: Sequence[Candidate], now: float) -> None:
        self._lined_up, self._stale_at = candidates, now + REFRESH
        if [host.weight for host in candidates] != self._weights:
            self._line_up(candidates, now)

    def _line_up(self, candidates: Sequence[Candidate], now: float) -> None:
        passed = self._now - self._began
        for host in self._members:
            host.turn -= passed
        self._lined_up, self._stale_at = candidates, now + REFRESH
        self._members = frozenset(candidates)
        self._weights = weights = [host.weight for host in candidates]
        for host, weight in zip(candidates, weights, strict=True):
            due = 1.0 / weight  # which weights that grow make shorter
            host.turn = max(-due, min(host.turn, due))
        # Had all of them got just their share, the next turn of each would begin now.
        self._slot = 1.0 / sum(weights)
        self._now = self._began = self._slot * sum(
            host.turn * weight for host, weight in zip(candidates, weights, strict=True)
        )
        self._waiting = [(host.turn, place) for place, host in enumerate(candidates)]
        heapify(self._waiting)
        self._ready = []
