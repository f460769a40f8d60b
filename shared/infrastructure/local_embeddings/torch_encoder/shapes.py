"""Shapes of passes, rounded up so that a few of them serve all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FEWEST_TOKENS = 64
_SHORTEST_TEXT = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a pass is.

    Attributes:
        tokens: Tokens of all texts.
        texts: Texts.
        longest: Tokens of the longest text.
    """

    tokens: int
    texts: int
    longest: int

    @classmethod
    def of(cls, lengths: NDArray[np.int64]) -> Shape:
        """Return the shape of a pass over texts of these lengths."""
        return cls(int(lengths.sum()), len(lengths), int(lengths.max(initial=1)))

    def bucket(self) -> Shape:
        """Return the smallest shape of the grid that this one fits into.

        Tokens, which cost time, go up in steps of a half and a third; texts that are not there and
        lengths that are not reached cost next to nothing, and double.
        """
        return Shape(
            tokens=_step(max(self.tokens, _FEWEST_TOKENS)),
            texts=_power(self.texts),
            longest=_power(max(self.longest, _SHORTEST_TEXT)),
        )


def usual_shapes(batch_tokens: int, max_length: int) -> Iterator[Shape]:
    """Yield the buckets that a corpus sorted by length fills, and those of single texts.

    Largest first: their memory then serves the smaller ones.
    """
    longest = _power(max_length)
    seen: dict[Shape, None] = {}
    while longest >= _SHORTEST_TEXT:
        # Full passes over texts whose lengths lie between this power of two and the one below.
        for length in (longest // 2 + 1, longest):
            texts = max(1, batch_tokens // min(length, max_length))
            seen[Shape(batch_tokens, texts, longest).bucket()] = None
        longest //= 2
    longest = _power(max_length)
    while longest >= _SHORTEST_TEXT:
        seen[Shape(min(longest, max_length), 1, longest).bucket()] = None
        longest //= 2
    yield from seen


def _power(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


def _step(count: int) -> int:
    power = _power(count)
    return power * 3 // 4 if count <= power * 3 // 4 else power
