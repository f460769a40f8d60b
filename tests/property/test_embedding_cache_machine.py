"""The cache's memory under random use, against a model that is too plain to be wrong."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.embedding.caching import MemoryTier
from services.embedding.outcome import Embedded
from shared.infrastructure.testing import FakeClock
from tests.cache_entries import key_of, same
from tests.property.machine import TICK, thorough

TTL = 16 * TICK
DIMENSIONS = st.sampled_from([1, 1, 1, 2, 5])
NUMBERS = st.integers(0, 5)


class PlainLru:
    """Keys in a list, that to go first in front."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []

    def use(self, key: bytes) -> None:
        self.keys.remove(key)
        self.keys.append(key)

    def add(self, key: bytes) -> None:
        self.keys.append(key)

    def remove(self, key: bytes) -> None:
        self.keys.remove(key)

    def victim(self) -> bytes:
        return self.keys[0]


class PlainSieve:
    """A queue, oldest first, a hand that points at a place in it, and marks."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.marks: set[bytes] = set()
        self.hand = 0

    def use(self, key: bytes) -> None:
        self.marks.add(key)

    def add(self, key: bytes) -> None:
        self.keys.append(key)

    def remove(self, key: bytes) -> None:
        place = self.keys.index(key)
        del self.keys[place]
        self.marks.discard(key)
        self.hand -= place < self.hand

    def victim(self) -> bytes:
        while True:
            self.hand %= len(self.keys)
            if self.keys[self.hand] not in self.marks:
                return self.keys[self.hand]
            self.marks.remove(self.keys[self.hand])
            self.hand += 1


class MemoryMachine(RuleBasedStateMachine):
    @initialize(
        policy=st.sampled_from(["lru", "sieve"]),
        max_entries=st.sampled_from([3, 4, 2, 1, 0]),
        max_bytes=st.sampled_from([100, 24, 16, 11, 4]),
        ttl=st.sampled_from([None, TTL]),
    )
    def begin(self, policy: str, max_entries: int, max_bytes: int, ttl: float | None) -> None:
        self.clock = FakeClock(0.0)
        self.max_entries, self.max_bytes, self.ttl = max_entries, max_bytes, ttl
        self.tier = MemoryTier(
            max_entries,
            max_bytes,
            policy=policy,  # type: ignore[arg-type]
            ttl=ttl,
            clock=self.clock,
        )
        self.order = PlainLru() if policy == "lru" else PlainSieve()
        self.entries: dict[bytes, Embedded] = {}
        self.ends: dict[bytes, float] = {}
        self.made = self.hits = self.misses = self.evictions = self.expired = 0

    def size(self) -> int:
        return sum(entry.vector.nbytes for entry in self.entries.values())

    def forget(self, key: bytes) -> None:
        del self.entries[key]
        self.ends.pop(key, None)
        self.order.remove(key)

    def end(self, key: bytes) -> None:
        if self.ends.get(key, np.inf) <= self.clock.now():
            self.forget(key)
            self.expired += 1

    @rule(number=NUMBERS, dimension=DIMENSIONS)
    def put(self, number: int, dimension: int) -> None:
        key = key_of(number)
        self.made += 1
        vector = np.full(dimension, self.made, np.float32)
        entry = Embedded(vector.copy(), self.made, truncated=self.made % 2 == 0)
        given = Embedded(vector, entry.token_count, entry.truncated)
        kept = self.tier.put(key, given)
        vector[:] = -1  # the caller's own again
        assert same(kept, entry)
        if key in self.entries:
            self.forget(key)
        for old in list(self.ends)[:2]:
            self.end(old)
        if self.max_entries < 1 or vector.nbytes > self.max_bytes:
            return
        while self.size() + vector.nbytes > self.max_bytes or len(self.entries) >= self.max_entries:
            self.forget(self.order.victim())
            self.evictions += 1
        self.entries[key] = entry
        self.order.add(key)
        if self.ttl is not None:
            self.ends[key] = self.clock.now() + self.ttl

    @rule(number=NUMBERS)
    def get(self, number: int) -> None:
        key = key_of(number)
        self.end(key)
        found = self.tier.get(key)
        assert same(found, self.entries.get(key))
        if found is None:
            self.misses += 1
            return
        self.hits += 1
        self.order.use(key)
        assert not found.vector.flags.writeable
        assert found.vector.base is None

    @rule(ticks=st.sampled_from([1, 4, 16]))
    def pass_time(self, ticks: int) -> None:
        self.clock.stall(ticks * TICK)

    @rule()
    def clear(self) -> None:
        self.tier.clear()
        for key in list(self.entries):
            self.forget(key)
        self.order = type(self.order)()

    @invariant()
    def what_is_there_is_right_and_looking_changes_nothing(self) -> None:
        for number in range(6):
            self.end(key_of(number))
            assert same(self.tier.peek(key_of(number)), self.entries.get(key_of(number)))

    @invariant()
    def sizes_and_counts_are_right(self) -> None:
        assert self.tier.snapshot() == {
            "entries": len(self.entries),
            "max_entries": self.max_entries,
            "bytes": self.size(),
            "max_bytes": self.max_bytes,
            "hits": self.hits,
            "misses": self.misses,
            "evictions": self.evictions,
            "expired": self.expired,
        }
        assert self.size() <= self.max_bytes
        assert len(self.entries) <= self.max_entries


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = thorough(200, 60)
