"""Entries as the bytes that slower tiers keep: what is not exactly what was written is nothing."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from services.embedding.outcome import Embedded

# Version, whether it was truncated, tokens, when it ends; the checksum follows, then the vector,
# so that the vector begins at a multiple of its item size.
_HEAD = struct.Struct("<HHId")
_VERSION = 1
_CHECKSUM_BYTES = 8
_VECTOR_AT = _HEAD.size + _CHECKSUM_BYTES
_NUMBER = np.dtype("<f4")
_NEVER = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """An entry in a slower tier.

    Attributes:
        entry: The entry.
        ends: Unix time after which it is none any more; None is never.
    """

    entry: Embedded
    ends: float | None = None

    def has_ended(self, now: float) -> bool:
        """Whether it is none any more at a Unix time."""
        return self.ends is not None and self.ends <= now


def encode(key: bytes, kept: Kept) -> bytes:
    """Return the record of an entry, which is worth something under its own key only."""
    entry = kept.entry
    ends = _NEVER if kept.ends is None else kept.ends
    head = _HEAD.pack(_VERSION, entry.truncated, entry.token_count, ends)
    vector = entry.vector.astype(_NUMBER, copy=False).tobytes()
    return b"".join((head, _checksum(key, head, vector), vector))


def encoded(entries: Mapping[bytes, Kept]) -> dict[bytes, bytes]:
    """Return the records of entries; one that no record can hold is left out."""
    records: dict[bytes, bytes] = {}
    for key, kept in entries.items():
        with contextlib.suppress(struct.error):  # such as a negative number of tokens
            records[key] = encode(key, kept)
    return records


def decode(key: bytes, record: object, dimension: int) -> Kept | None:
    """Return the entry that was encoded for the key; None for anything else.

    Args:
        key: The key that the record was found at.
        record: What was found.
        dimension: Numbers that the vector must have.
    """
    if not isinstance(record, bytes) or len(record) != _VECTOR_AT + dimension * _NUMBER.itemsize:
        return None
    view = memoryview(record)
    head, vector = view[: _HEAD.size], view[_VECTOR_AT:]
    version, truncated, token_count, ends = _HEAD.unpack(head)
    if version != _VERSION or record[_HEAD.size : _VECTOR_AT] != _checksum(key, head, vector):
        return None
    numbers = np.frombuffer(vector, _NUMBER).astype(np.float32, copy=False)
    entry = Embedded(numbers, token_count, bool(truncated))
    return Kept(entry, None if ends == _NEVER else ends)


def _checksum(key: bytes, head: bytes | memoryview, vector: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(key, digest_size=_CHECKSUM_BYTES)
    digest.update(head)
    digest.update(vector)
    return digest.digest()
