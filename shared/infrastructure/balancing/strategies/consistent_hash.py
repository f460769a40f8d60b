"""CONSISTENT_HASH: what belongs together goes to one host, as long as that is not overloaded."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b

from shared.infrastructure.balancing.call import RequestFacts
from shared.infrastructure.balancing.strategies.p2c import PowerOfTwoChoices
from shared.infrastructure.balancing.strategies.prompts import prompt_of
from shared.infrastructure.balancing.strategies.protocol import C, PickContext
from shared.infrastructure.balancing.strategies.sampling import Names, WeightedSampler

OVERLOAD = 1.25
"""How many times its share of the calls in flight a host may have."""

_BEGINNING = 1024  # characters of the prompt that are the key, where there is no other


class ConsistentHash:
    """A host by the calls' affinity, else by the beginning of their prompt.

    Hosts that come or go move few keys: the n-th host takes over about 1/n of them, also in other
    processes. A key whose host has more than `OVERLOAD` times its share goes to the next one. Where
    there is no key, the power of two choices decides. Source: Mirrokni, Thorup, Zadimoghaddam,
    Consistent Hashing with Bounded Loads, 2016.
    """

    def __init__(self, rng: random.Random) -> None:
        self._keyless = PowerOfTwoChoices(rng)
        self._weights = WeightedSampler(rng)
        self._names = Names()
        self._places: dict[str, int] = {}
        self._ring = Ring()

    def pick(self, candidates: Sequence[C], context: PickContext, /) -> C:
        key = _key(context.facts)
        if not key:
            return self._keyless.pick(candidates, context)
        places = self._names.of(candidates)
        if places is not self._places:
            self._places = places
            self._ring.learn(places)
        limit = 0.0
        for name in self._ring.walk(key):
            place = places.get(name)
            if place is None:
                continue
            host = candidates[place]
            if not host.in_flight:
                return host
            if not limit:
                calls = sum([host.in_flight for host in candidates]) + 1
                limit = OVERLOAD * calls / self._weights.total(candidates, context.now)
            if host.in_flight < limit * host.weight:
                return host
        return self._keyless.pick(candidates, context)


class Ring:
    """Names around a circle; whoever is gone, or not asked for, is to be passed over."""

    def __init__(self) -> None:
        self._points: list[int] = []
        self._names: list[str] = []
        self._known: frozenset[str] = frozenset()
        self._most = 0

    def learn(self, names: Mapping[str, object]) -> None:
        """Make room for new names; forget old ones, once most of those it knows are old."""
        self._most = max(self._most, len(names))
        if names.keys() <= self._known:
            return
        known = self._known | names.keys()
        self._known = known if len(known) <= 2 * self._most else frozenset(names)
        ring = sorted((point, name) for name in self._known for point in _points(name))
        self._points = [point for point, _ in ring]
        self._names = [name for _, name in ring]

    def walk(self, key: str) -> Iterator[str]:
        """Yield every name, most of them many times, from where `key` falls onto the circle."""
        at = bisect(self._points, _point(key))
        names = self._names
        for place in range(at, len(names)):
            yield names[place]
        for place in range(at):
            yield names[place]


def _key(facts: RequestFacts) -> str:
    return facts.affinity or prompt_of(facts)[:_BEGINNING]


def _point(key: str) -> int:
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _points(name: str) -> Iterable[int]:
    """Return 128 points for a name."""
    for number in range(16):
        digest = blake2b(f"{number} {name}".encode("utf-8", "surrogatepass")).digest()
        for at in range(0, 64, 8):
            yield int.from_bytes(digest[at : at + 8], "big")
