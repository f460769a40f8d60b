"""An exact cache: the same text under the same model, and never a wrong or broken vector."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Embedded:
    """What a model made of one text; all that callers may ask for derives from it.

    Attributes:
        vector: Pooled, not normalised; float32 of shape (dimension,).
        token_count: Tokens the model read.
        truncated: Whether the model left out the end of the text.
    """

    vector: Vector
    token_count: int
    truncated: bool


def key_function(fingerprint: str, kind: str = "text") -> Callable[[bytes], bytes]:
    """Return the function from a payload to its cache key, a binary SHA-256.

    Every field goes in with its length, so that no two lists of fields give the same bytes.

    Args:
        fingerprint: Of the model, and of all else that decides the vector.
        kind: What the payload is, such as `text` in UTF-8.
    """
    prefix = hashlib.sha256()
    for field in (b"embedding-1", fingerprint.encode(), kind.encode()):
        prefix.update(len(field).to_bytes(8, "big") + field)

    def key(payload: bytes) -> bytes:
        sha = prefix.copy()
        sha.update(len(payload).to_bytes(8, "big") + payload)
        return sha.digest()

    return key


class EmbeddingCache:
    """Least recently used entries go first.

    It belongs to one event loop. What it returns is its own and read-only.

    Args:
        max_entries: Entries it holds at most; 0 holds none.
    """

    def __init__(self, max_entries: int = 1000) -> None:
        self.max_entries = max_entries
        self._entries: OrderedDict[bytes, Embedded] = OrderedDict()
        self._bytes = 0
        self._hits = 0
        self._misses = 0
        self._evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Embedded | None:
        """Return the entry and make it the most recently used; count a hit or a miss."""
        entry = self._entries.get(key)
        if entry is None:
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(key)
        return entry

    def peek(self, key: bytes) -> Embedded | None:
        """Return the entry; count nothing and leave the order as it is."""
        return self._entries.get(key)

    def put(self, key: bytes, entry: Embedded) -> None:
        """Keep a copy of the entry, unless its vector has a number that is not finite."""
        if self.max_entries < 1 or not np.isfinite(entry.vector).all():
            return
        # A row of a batch would keep the whole batch alive.
        vector = entry.vector.astype(np.float32, copy=True)
        vector.setflags(write=False)
        self._drop(key)
        self._entries[key] = Embedded(vector, entry.token_count, entry.truncated)
        self._bytes += vector.nbytes
        while len(self._entries) > self.max_entries:
            self._drop(next(iter(self._entries)))
            self._evictions += 1

    def clear(self) -> None:
        """Forget every entry; the counters go on."""
        self._entries.clear()
        self._bytes = 0

    def snapshot(self) -> dict[str, Any]:
        """Return counters as plain JSON types; `bytes` is that of the vectors held."""
        lookups = self._hits + self._misses
        return {
            "entries": len(self._entries),
            "max_entries": self.max_entries,
            "bytes": self._bytes,
            "hits": self._hits,
            "misses": self._misses,
            "evictions": self._evictions,
            "hit_rate": self._hits / lookups if lookups else 0.0,
        }

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.vector.nbytes
