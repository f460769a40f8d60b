"""What a call gives: rows in the order of its items, made of what the model said of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.embedding.errors import InvalidDimensionsError, TextRejectedError
from services.embedding.options import EmbedOptions
from services.embedding.outcome import Embedded, Outcome
from shared.infrastructure.local_embeddings import (
    EmbeddingBatch,
    InferenceError,
    InvalidTextError,
    NonFiniteVectorError,
    normalized,
)
from shared.infrastructure.resilience import ServiceError
from shared.models.embedding import EmbeddingResult

TEXT_FAULTS = (TextRejectedError, NonFiniteVectorError)
"""Errors that a text is to blame for, though nothing is wrong with its form."""


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Some embedded items, in the order they were given.

    Attributes:
        vectors: float32 of shape (n, dimensions); of length 1 unless that was not wanted.
        token_counts: Tokens the model read of each item.
        truncated: Whether one end of each item was left out.
        cached: Whether each vector came out of the cache.
        fingerprint: Hash that names the vector space: compare only vectors that have the same.
    """

    vectors: NDArray[np.float32]
    token_counts: Sequence[int]
    truncated: Sequence[bool]
    cached: Sequence[bool]
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.token_counts)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What came of the items of a call, in their order.

    Attributes:
        outcomes: A vector, or why there is none, of each item.
        cached: Whether each one came out of the cache.
        token_counts: Tokens read of each item; 0 where one failed.
        truncated: Whether one end of each item was left out.
        duplicates: Items that another one of the call reads like.
    """

    outcomes: Sequence[Outcome]
    cached: Sequence[bool]
    token_counts: Sequence[int]
    truncated: Sequence[bool]
    duplicates: int = 0

    def failures(self) -> Mapping[int, ServiceError]:
        """Return what went wrong with which item, each error told of its place in the call."""
        failed = enumerate(self.outcomes)
        return {row: blamed(item, row) for row, item in failed if isinstance(item, Exception)}


def resolved(
    outcomes: Sequence[Outcome], cached: Sequence[bool], cut: AbstractSet[int], duplicates: int
) -> Resolved:
    """Return what came of items, some of which (`cut`) were cut before the model saw them."""
    token_counts: list[int] = []
    truncated: list[bool] = []
    for row, item in enumerate(outcomes):
        if isinstance(item, Embedded):
            token_counts.append(item.token_count)
            truncated.append(item.truncated or row in cut)
        else:
            token_counts.append(0)
            truncated.append(False)
    return Resolved(outcomes, cached, token_counts, truncated, duplicates)


class VectorForm:
    """What vectors of the model become for a caller.

    Args:
        dimension: Numbers in a vector of the model.
        options: What the caller wants.

    Raises:
        InvalidDimensionsError: More dimensions than the model has, or none.
    """

    def __init__(self, dimension: int, options: EmbedOptions) -> None:
        self.width = dimension if options.dimensions is None else options.dimensions
        if not 1 <= self.width <= dimension:
            raise InvalidDimensionsError(
                f"dimensions must be from 1 to {dimension}, the model's own, not {self.width}"
            )
        self._normalize = options.normalize

    def finish(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return vectors (n, dimension) as the caller wants them, (n, width)."""
        kept = vectors[:, : self.width]
        return normalized(kept) if self._normalize else kept


def assemble(resolved: Resolved, form: VectorForm, fingerprint: str) -> Embeddings:
    """Return the vectors of a call, or raise what went wrong with the first item that has none."""
    vectors = np.empty((len(resolved.outcomes), form.width), np.float32)
    for row, outcome in enumerate(resolved.outcomes):
        if isinstance(outcome, Exception):
            raise blamed(outcome, row)
        vectors[row] = outcome.vector[: form.width]
    return Embeddings(
        form.finish(vectors),
        resolved.token_counts,
        resolved.truncated,
        resolved.cached,
        fingerprint,
    )


def as_batch(resolved: Resolved, dimension: int) -> EmbeddingBatch:
    """Return the vectors of a window of a corpus as the model made them; NaN where there is none.

    Raises:
        ServiceError: No item is to blame, but the service.
    """
    vectors = np.full((len(resolved.outcomes), dimension), np.nan, np.float32)
    failures = resolved.failures()
    for row, outcome in enumerate(resolved.outcomes):
        if isinstance(outcome, Embedded):
            vectors[row] = outcome.vector
        elif not isinstance(failures[row], (TextRejectedError, InferenceError, InvalidTextError)):
            raise failures[row]
    return EmbeddingBatch(
        vectors, tuple(resolved.token_counts), tuple(resolved.truncated), failures
    )


def as_results(embeddings: Embeddings, model: str) -> list[EmbeddingResult]:
    """Return each item's embedding as an object of plain values."""
    rows = zip(
        embeddings.vectors.tolist(),
        embeddings.token_counts,
        embeddings.truncated,
        embeddings.cached,
        strict=True,
    )
    return [
        EmbeddingResult(
            embedding=vector, token_count=tokens, truncated=truncated, cached=cached, model=model
        )
        for vector, tokens, truncated, cached in rows
    ]


def blamed(error: Exception, row: int) -> ServiceError:
    """Return the error to raise for the item at `row`; errors are shared between callers."""
    if isinstance(error, InvalidTextError) and error.index is not None:
        return error.moved(row - error.index)
    if isinstance(error, TEXT_FAULTS):
        rejected = TextRejectedError(f"text {row} cannot be embedded: {error}", row)
        rejected.__cause__ = error
        return rejected
    if isinstance(error, ServiceError):
        return error
    unforeseen = ServiceError(f"text {row} cannot be embedded: {type(error).__name__}: {error}")
    unforeseen.__cause__ = error
    return unforeseen
