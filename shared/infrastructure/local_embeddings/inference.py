"""One call's work on the model's thread, in slices, so that a long call lets short ones through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.backends import EmbeddingBackend
from shared.infrastructure.local_embeddings.batching import plan_batches
from shared.infrastructure.local_embeddings.errors import (
    InferenceError,
    InvalidTextError,
    NonFiniteVectorError,
)
from shared.infrastructure.local_embeddings.tokens import TokenBatch
from shared.infrastructure.local_embeddings.vectors import Vectors
from shared.infrastructure.resilience.clock import Clock
from shared.infrastructure.resilience.errors import ServiceError

_SLICE = 0.05  # seconds after which a call lets the next one have a turn


@dataclass(frozen=True, slots=True)
class EmbeddingBatch:
    """What the model said of some texts, in their order.

    Attributes:
        vectors: Pooled vectors that are not normalised, float32 of shape (n, dim).
        token_counts: Tokens read of each text, special tokens included.
        truncated: Whether a text was too long, so that its end was not read.
    """

    vectors: Vectors
    token_counts: tuple[int, ...]
    truncated: tuple[bool, ...]


class Inference:
    """Texts on their way to vectors.

    Args:
        backend: The model.
        texts: What to embed.
        max_rows: Texts in one forward pass at most.
        max_tokens: Tokens in one forward pass at most, padding included.
        clock: Measures the slices.
    """

    def __init__(
        self,
        backend: EmbeddingBackend,
        texts: Sequence[str],
        *,
        max_rows: int,
        max_tokens: int,
        clock: Clock,
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._steps = self._run(texts, max_rows, max_tokens)

    def advance(self) -> EmbeddingBatch | None:
        """Work for one slice, on the model's thread; return the result once there is one.

        Raises:
            InferenceError: The library failed, or the model answered NaN or infinity.
            InvalidTextError: A text is no valid Unicode.
        """
        deadline = self._clock.now() + _SLICE
        try:
            for result in self._steps:
                if result or self._clock.now() >= deadline:
                    return result
        except ServiceError:
            raise
        except Exception as exc:
            raise InferenceError(f"inference failed: {type(exc).__name__}: {exc}") from exc
        raise RuntimeError("the result was already returned")

    def _run(
        self, texts: Sequence[str], max_rows: int, max_tokens: int
    ) -> Iterator[EmbeddingBatch | None]:
        tokens = self._backend.tokenize(texts)
        lengths = tokens.lengths
        vectors = np.empty((len(texts), self._backend.spec.dimension), np.float32)
        for rows in plan_batches(lengths, max_rows=max_rows, max_tokens=max_tokens):
            vectors[rows] = self._forward(tokens, rows)
            yield None
        yield EmbeddingBatch(vectors, tuple(lengths.tolist()), tuple(tokens.truncated))

    def _forward(self, tokens: TokenBatch, rows: NDArray[np.int64]) -> Vectors:
        vectors = self._backend.forward(tokens.select(rows))
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            indexes = tuple(sorted(rows[~finite].tolist()))
            raise NonFiniteVectorError(
                f"the model answered NaN or infinity for text(s) {indexes}", indexes
            )
        return vectors


def as_texts(texts: Sequence[str] | str) -> tuple[str, ...]:
    """Return what a caller gave as a tuple of strings; a plain string is one text.

    Raises:
        InvalidTextError: It is no sequence of strings; `index` names the first item that is none.
    """
    if isinstance(texts, str):
        return (texts,)
    given = cast("object", texts)  # callers without a type checker pass anything
    if not isinstance(given, Sequence) or isinstance(given, (bytes, bytearray)):
        kind = type(given).__name__
        raise InvalidTextError(f"texts must be a string or a sequence of strings, not {kind}")
    for index, item in enumerate(cast("Sequence[object]", given)):
        if not isinstance(item, str):
            kind = type(item).__name__
            raise InvalidTextError(f"text {index} must be a string, not {kind}", index)
    return tuple(texts)
