"""The first tier: vectors in the memory of this process, bounded in number and in bytes.

Each entry has an array of its own. One array for all would take 11 % less memory at 384 numbers,
but an answer would have to be copied out of it on every hit, for several times the price.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from typing import Any, Literal

import numpy as np

from services.embedding.caching.policies import LeastRecentlyUsed, Policy, Sieve
from services.embedding.outcome import Embedded
from shared.infrastructure.resilience import MONOTONIC, Clock

# Old entries looked at on each put: two are enough to stay ahead, few enough never to be felt.
_EXPIRED_PER_PUT = 2


class MemoryTier:
    """Entries in memory; what it returns is its own and read-only.

    Args:
        max_entries: Entries it holds at most; 0 holds none.
        max_bytes: Bytes of the vectors it holds at most.
        policy: What goes first: `lru` what was used longest ago, `sieve` what was not used lately,
            so that a long scan does not wash everything out.
        ttl: Seconds after which an entry is none any more; None is never.
        clock: Source of monotonic time.
    """

    def __init__(
        self,
        max_entries: int,
        max_bytes: int,
        *,
        policy: Literal["lru", "sieve"] = "lru",
        ttl: float | None = None,
        clock: Clock = MONOTONIC,
    ) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._policy_name = policy
        self._ttl = ttl
        self._now = clock.now
        self._entries = self._new_policy()
        # Instants at which entries end, those first that came first; empty if none ends.
        self._ends: OrderedDict[bytes, float] = OrderedDict()
        self._bytes = 0
        self._hits = self._misses = self._evictions = self._expired = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Embedded | None:
        """Return the entry and take note of its use; count a hit or a miss."""
        if self._ends:
            self._expire(key)
        entry = self._entries.use(key)
        if entry is None:
            self._misses += 1
        else:
            self._hits += 1
        return entry

    def peek(self, key: bytes) -> Embedded | None:
        """Return the entry; count nothing and leave the order as it is."""
        if self._ends:
            self._expire(key)
        return self._entries.peek(key)

    def put(self, key: bytes, entry: Embedded, *, ttl: float | None = None) -> Embedded:
        """Keep a copy of the entry, and return the copy.

        Args:
            key: Its key; what was there before is dropped.
            entry: The entry.
            ttl: Seconds it has left; None is those of the tier.
        """
        # A row of a batch would keep the whole batch alive.
        vector = np.array(entry.vector, np.float32)
        vector.setflags(write=False)
        kept = Embedded(vector, entry.token_count, entry.truncated)
        self._drop(key)
        for old in tuple(itertools.islice(self._ends, _EXPIRED_PER_PUT)):
            self._expire(old)
        if self._max_entries < 1 or vector.nbytes > self._max_bytes:
            return kept
        self._bytes += vector.nbytes
        # First, so that an entry nobody could have used yet does not make room for itself.
        while self._bytes > self._max_bytes or len(self._entries) >= self._max_entries:
            self._evict()
        self._entries.add(key, kept)
        ttl = self._ttl if ttl is None else ttl
        if ttl is not None:
            self._ends[key] = self._now() + ttl
        return kept

    def clear(self) -> None:
        """Forget every entry; the counters go on."""
        self._entries = self._new_policy()
        self._ends.clear()
        self._bytes = 0

    def snapshot(self) -> dict[str, Any]:
        """Return sizes and counters as plain JSON types; `bytes` is that of the vectors."""
        return {
            "entries": len(self._entries),
            "max_entries": self._max_entries,
            "bytes": self._bytes,
            "max_bytes": self._max_bytes,
            "hits": self._hits,
            "misses": self._misses,
            "evictions": self._evictions,
            "expired": self._expired,
        }

    def _new_policy(self) -> Policy:
        return Sieve() if self._policy_name == "sieve" else LeastRecentlyUsed()

    def _expire(self, key: bytes) -> None:
        if self._ends.get(key, math.inf) <= self._now():
            self._drop(key)
            self._expired += 1

    def _evict(self) -> None:
        key, entry = self._entries.evict()
        self._bytes -= entry.vector.nbytes
        self._ends.pop(key, None)
        self._evictions += 1

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        if entry is not None:
            self._bytes -= entry.vector.nbytes
            self._ends.pop(key, None)
