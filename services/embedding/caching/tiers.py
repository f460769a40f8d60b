"""The cache as the service uses it: memory first, then a file, then Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from services.embedding.caching.disk import DiskTier
from services.embedding.caching.memory import MemoryTier
from services.embedding.caching.records import Kept
from services.embedding.caching.redis import RedisTier
from services.embedding.outcome import Embedded
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.resilience import MONOTONIC, Clock


class LowerTier(Protocol):
    """A tier that takes time to ask; it raises nothing, and is done without when out of order."""

    @property
    def name(self) -> str:
        """What it is called in `snapshot`."""
        ...

    async def start(self, dimension: int) -> None:
        """Make it usable, for vectors of so many numbers."""
        ...

    async def aclose(self) -> None:
        """Write what waits, and give everything back; `start` may follow."""
        ...

    async def fetch(self, keys: Sequence[bytes]) -> dict[bytes, Kept]:
        """Return the entries there are."""
        ...

    def put(self, key: bytes, kept: Kept) -> None:
        """Have an entry written soon."""
        ...

    def clear(self) -> None:
        """Forget every entry that is nobody else's."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Return sizes and counters as plain JSON types; `hits` and `misses` among them."""
        ...


class EmbeddingCache:
    """An exact cache: the same item, read the same way by the same model, has the same vector.

    What it returns is its own and read-only. It belongs to one event loop.

    Args:
        memory: The first tier.
        lower: The others, fastest first.
        ttl: Seconds after which an entry is none any more; None is never.
        wall: Source of Unix time, by which entries end that outlive the process.
    """

    def __init__(
        self,
        memory: MemoryTier,
        lower: Sequence[LowerTier] = (),
        *,
        ttl: float | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._memory = memory
        self._lower = tuple(lower)
        self._ttl = ttl
        self._wall = wall
        self._dimension: int | None = None
        self._found_below = self._refused = 0

    @classmethod
    def from_settings(cls, settings: EmbeddingSettings, *, clock: Clock = MONOTONIC) -> Self:
        """Return the tiers that the fields `cache_…` describe.

        Raises:
            MissingExtraError: There is a Redis, but the package redis is not installed.
            ConfigurationError: The URL of Redis makes no sense.
        """
        lower: list[LowerTier] = []
        if settings.cache_file is not None:
            lower.append(DiskTier(settings.cache_file, settings.cache_file_bytes, clock=clock))
        if settings.cache_redis_url is not None:
            url = settings.cache_redis_url.get_secret_value()
            lower.append(RedisTier(url, timeout=settings.cache_redis_timeout, clock=clock))
        memory = MemoryTier(
            settings.cache_size,
            settings.cache_bytes,
            policy=settings.cache_policy,
            ttl=settings.cache_ttl,
            clock=clock,
        )
        return cls(memory, lower, ttl=settings.cache_ttl)

    def __len__(self) -> int:
        return len(self._memory)

    @property
    def has_lower_tiers(self) -> bool:
        """Whether `fetch` can find anything."""
        return bool(self._lower)

    def get(self, key: bytes) -> Embedded | None:
        """Return what is in memory, and take note of its use; count a hit or a miss."""
        return self._memory.get(key)

    def peek(self, key: bytes) -> Embedded | None:
        """Return what is in memory; count nothing and leave the order as it is."""
        return self._memory.peek(key)

    async def start(self, dimension: int) -> None:
        """Begin to use the lower tiers, for vectors of so many numbers."""
        if dimension != self._dimension:
            self._memory.clear()
        self._dimension = dimension
        for tier in self._lower:
            await tier.start(dimension)

    async def close(self) -> None:
        """Write what waits to be written, and let go of the lower tiers."""
        for tier in self._lower:
            await tier.aclose()

    async def fetch(self, keys: Sequence[bytes]) -> dict[bytes, Embedded]:
        """Return what the lower tiers have, and keep it in those above; raise nothing."""
        entries: dict[bytes, Embedded] = {}
        missing = list(dict.fromkeys(keys))
        for index, tier in enumerate(self._lower):
            if not missing:
                break
            for key, kept in (await tier.fetch(missing)).items():
                entries[key] = self._memory.put(key, kept.entry, ttl=self._rest(kept))
                for upper in self._lower[:index]:
                    upper.put(key, kept)
            missing = [key for key in missing if key not in entries]
        self._found_below += len(entries)
        return entries

    def put(self, entries: Mapping[bytes, Embedded]) -> None:
        """Keep entries here, and have them written to the lower tiers.

        One that is not finite, or not of the model's dimension, is kept nowhere.
        """
        ends = None if self._ttl is None else self._wall() + self._ttl
        for key, entry in entries.items():
            if not self._is_sound(entry):
                self._refused += 1
                continue
            kept = self._memory.put(key, entry)
            for tier in self._lower:
                tier.put(key, Kept(kept, ends))

    def clear(self) -> None:
        """Forget what is in memory and in the file; what is in Redis belongs to others, too."""
        self._memory.clear()
        for tier in self._lower:
            tier.clear()

    def snapshot(self) -> dict[str, Any]:
        """Return counters as plain JSON types; `tiers` has those of each tier.

        A hit is what any tier had; `entries`, `bytes` and `evictions` are those of the memory.
        """
        memory = self._memory.snapshot()
        lookups = memory["hits"] + memory["misses"]
        hits = memory["hits"] + min(self._found_below, memory["misses"])
        return {
            **memory,
            "hits": hits,
            "misses": lookups - hits,
            "hit_rate": hits / lookups if lookups else 0.0,
            "refused": self._refused,
            "tiers": {"memory": memory, **{tier.name: tier.snapshot() for tier in self._lower}},
        }

    def _is_sound(self, entry: Embedded) -> bool:
        shape = entry.vector.shape
        is_right = len(shape) == 1 and self._dimension in (None, shape[0])
        return is_right and bool(np.isfinite(entry.vector).all())

    def _rest(self, kept: Kept) -> float | None:
        """Return the seconds an entry has left; a clock that was set back gives it no more."""
        if kept.ends is None:
            return self._ttl
        rest = kept.ends - self._wall()
        return rest if self._ttl is None else min(rest, self._ttl)
