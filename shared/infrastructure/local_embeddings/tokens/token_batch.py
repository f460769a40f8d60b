"""Token ids of some texts, ragged: one flat array and where each text begins."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Token ids of n texts, special tokens included.

    Attributes:
        ids: Ids of all texts, one after another, int32 of shape (tokens,).
        offsets: Where each text begins in `ids`, and where the last one ends, int64 (n + 1,).
        truncated: Whether a text was too long, so that one end of it is missing, bool (n,).
        prompt_tokens: Tokens at the start of every text that its vector leaves out; 0 unless the
            model keeps its prompts out of the pooling.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    prompt_tokens: int = 0

    @classmethod
    def of(
        cls,
        ids: Sequence[Sequence[int] | NDArray[Any]],
        truncated: Sequence[bool] | None = None,
        prompt_tokens: int = 0,
    ) -> TokenBatch:
        """Return the batch of texts given as lists of ids."""
        bounds = list(itertools.accumulate(map(len, ids), initial=0))
        flat = np.empty(bounds[-1], np.int32)
        for row, (start, end) in zip(ids, itertools.pairwise(bounds), strict=True):
            flat[start:end] = row
        cut = np.zeros(len(ids), np.bool_) if truncated is None else np.array(truncated, np.bool_)
        return cls(flat, np.array(bounds, np.int64), cut, prompt_tokens)

    @classmethod
    def joined(cls, parts: Sequence[TokenBatch]) -> TokenBatch:
        """Return the texts of several batches, one after another; at least one batch is given."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.ids for part in parts]),
            _offsets_of(np.concatenate([part.lengths for part in parts])),
            np.concatenate([part.truncated for part in parts]),
            parts[0].prompt_tokens,
        )

    def split(self) -> list[TokenBatch]:
        """Return the texts one by one; their ids are views of these."""
        if len(self) == 1:
            return [self]
        bounds: list[int] = self.offsets.tolist()
        return [
            TokenBatch(
                self.ids[start:end],
                np.array([0, end - start], np.int64),
                self.truncated[row : row + 1],
                self.prompt_tokens,
            )
            for row, (start, end) in enumerate(itertools.pairwise(bounds))
        ]

    def __len__(self) -> int:
        return len(self.truncated)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, int64 of shape (n,)."""
        return self.offsets[1:] - self.offsets[:-1]  # np.diff takes ten times as long

    def select(self, rows: NDArray[np.int64]) -> TokenBatch:
        """Return the texts at `rows`, in that order."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        # Where each token of the result lies in `ids`: its place in its text, after the text's
        # beginning here.
        ids = self.ids[np.repeat(starts, lengths) + positions_of(lengths)]
        return TokenBatch(ids, _offsets_of(lengths), self.truncated[rows], self.prompt_tokens)

    def padded(self, pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return ids and attention mask, both int64 of shape (n, longest), padded on the right."""
        lengths = self.lengths
        longest = int(lengths.max(initial=1))
        real: NDArray[np.bool_] = np.arange(longest) < lengths[:, None]
        ids = np.full(real.shape, pad_id, np.int64)
        ids[real] = self.ids
        return ids, real.astype(np.int64)


def positions_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of each token in its text, int64 (tokens,), for texts in a row."""
    starts = np.cumsum(lengths) - lengths
    positions: NDArray[np.int64] = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    return positions


def _offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    lengths.cumsum(out=offsets[1:])
    return offsets
