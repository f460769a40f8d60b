"""What a server answered, as rows of float32: put in order and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from services.embedding.options import Item

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """The vectors of one request, in the order of its items.

    Attributes:
        vectors: float32 of shape (items, dimension).
        total_tokens: Tokens of all items; 0 if the server does not say.
        token_counts: Tokens of each item, if the server says.
        truncated: Whether it said that it left out one end of each item; None is of none.
        model: Name of the model, if it says.
        fingerprint: Fingerprint of the model, if it says.
    """

    vectors: Vectors
    total_tokens: int = 0
    token_counts: Sequence[int] | None = None
    truncated: Sequence[bool] | None = None
    model: str | None = None
    fingerprint: str | None = None

    def tokens_of(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """Return the tokens of each item; unless told, its share of all by its length."""
        if self.token_counts is not None:
            return np.array(self.token_counts, np.int64)
        lengths = np.fromiter(map(len, items), np.int64, len(items)) + 1
        ends = lengths.cumsum()
        marks = (ends * (self.total_tokens / int(ends[-1])) + 0.5).astype(np.int64)
        marks[1:] -= marks[:-1].copy()
        return marks


Entry = TypeVar("Entry")


def in_order(entries: Sequence[Entry], indexes: Sequence[int]) -> Sequence[Entry]:
    """Return what has the index 0, 1 and so on.

    Raises:
        ValueError: An index is there twice, or missing.
    """
    wanted = list(range(len(entries)))
    if indexes == wanted:
        return entries
    if sorted(indexes) != wanted:
        raise ValueError("not each index once")
    places = dict(zip(indexes, entries, strict=True))
    return [places[index] for index in wanted]


def rows_of(values: Sequence[bytes | list[float]], count: int) -> Vectors:
    """Return vectors as rows; bytes are those of float32, little-endian.

    Raises:
        ValueError: There are not as many, they are not of one length, or a number is not finite.
    """
    if len(values) != count:
        raise ValueError(f"{len(values)} vectors for {count} texts")
    if set(map(type, values)) != {bytes}:
        values = [_as_bytes(value) for value in values]
    lengths = set(map(len, values))
    if len(lengths) > 1 or lengths & {0} or any(length % 4 for length in lengths):
        raise ValueError(f"vectors of {sorted(length / 4 for length in lengths)} numbers")
    # One array for all: no object of Python's own for each row, let alone for each number.
    rows = np.frombuffer(b"".join(cast("Sequence[bytes]", values)), "<f4").reshape(count, -1)
    if not np.isfinite(rows).all():
        raise ValueError("a vector with numbers that are not finite")
    return rows.astype(np.float32, copy=False)


def _as_bytes(value: bytes | list[float]) -> bytes:
    if isinstance(value, bytes):
        return value
    with np.errstate(over="ignore"):  # infinity is found later
        return np.array(value, "<f4").tobytes()
