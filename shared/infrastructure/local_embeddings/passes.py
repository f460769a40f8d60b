"""One forward pass, on a worker thread: halved when memory runs out or one of its texts is bad."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.backends import EmbeddingBackend
from shared.infrastructure.local_embeddings.batching import Rows
from shared.infrastructure.local_embeddings.errors import (
    InferenceError,
    NonFiniteVectorError,
    OutOfMemoryError,
    WorkerCrashedError,
)
from shared.infrastructure.local_embeddings.limits import Limits
from shared.infrastructure.local_embeddings.memory.out_of_memory import is_out_of_memory
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.local_embeddings.vectors import Vectors
from shared.infrastructure.resilience.errors import ServiceError

_log = logging.getLogger(__name__)

# Texts that failed alone, without one that went well, after which the model is to blame.
_HOPELESS = 4


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedRows:
    """What came of some texts of a call.

    Attributes:
        rows: Positions of the texts in the call, int64 of shape (k,).
        vectors: Pooled vectors that are not normalised, float32 (k, dim); NaN where one failed.
        token_counts: Tokens read of each text, special tokens included, int64 (k,).
        truncated: Whether a text was too long, so that one end of it was not read, bool (k,).
        failures: What went wrong with a text, by its position in the call.
    """

    rows: Rows
    vectors: Vectors
    token_counts: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    failures: Mapping[int, ServiceError]

    def __len__(self) -> int:
        return len(self.rows)


class Pass:
    """A forward pass over some texts of a call.

    Args:
        backend: The model.
        tokens: All texts of the call.
        rows: Those of this pass.
        limits: Asked before the pass whether it fits, and told how it went.
    """

    def __init__(
        self, backend: EmbeddingBackend, tokens: TokenBatch, rows: Rows, limits: Limits
    ) -> None:
        self._backend = backend
        self._of_call = tokens
        self._rows = rows
        self._budget = limits.budget
        self._governor = limits.governor
        self._vectors = np.empty((len(rows), backend.spec.dimension), np.float32)
        self._failures: dict[int, ServiceError] = {}
        self._answered = 0

    def __call__(self) -> EmbeddedRows:
        """Run it; what goes wrong is the failure of the texts it goes wrong for."""
        tokens = self._of_call.select(self._rows)
        waiting = [(0, len(tokens))]
        while waiting:
            self._governor.check()
            start, end = waiting.pop()
            part = tokens if len(tokens) == end - start else tokens.select(np.arange(start, end))
            if end - start > 1 and not self._fits(part):
                waiting += _halves(start, end)
            elif error := self._forward(part, self._vectors[start:end]):
                if end - start > 1 and _may_be_halved(error):
                    waiting += _halves(start, end)
                    continue
                self._give_up([(start, end)], error)
                if not self._answered and self._is_hopeless(error):
                    self._give_up(waiting, error)
                    break
            else:
                self._answered += end - start
                self._check(start, end)
        return EmbeddedRows(
            self._rows, self._vectors, tokens.lengths, tokens.truncated, self._failures
        )

    def _is_hopeless(self, error: Exception) -> bool:
        # The longest texts come first: that they do not fit says nothing of the others.
        return len(self._failures) >= _HOPELESS and not is_out_of_memory(error)

    def _fits(self, part: TokenBatch) -> bool:
        spec = self._backend.spec
        return self._governor.admits(spec.cost(part.lengths).bytes, device=spec.device)

    def _forward(self, part: TokenBatch, out: Vectors) -> Exception | None:
        try:
            self._backend.forward(part, out)
        except Exception as exc:
            if is_out_of_memory(exc):
                lengths, is_packed = part.lengths, self._backend.spec.packed
                tokens = lengths.sum() if is_packed else lengths.max() * len(lengths)
                self._budget.lower(int(tokens))
                self._trim()
            return exc
        self._budget.on_success()
        return None

    def _trim(self) -> None:
        try:
            self._backend.trim()
        except Exception:  # with no memory left this may fail as well
            _log.warning("the memory of the model could not be trimmed", exc_info=True)

    def _check(self, start: int, end: int) -> None:
        finite = np.isfinite(self._vectors[start:end]).all(axis=1)
        if not finite.all():
            for at in np.flatnonzero(~finite):
                row = int(self._rows[start + at])
                self._vectors[start + at] = np.nan
                self._failures[row] = NonFiniteVectorError(
                    f"the model answered NaN or infinity for text {row}", (row,)
                )

    def _give_up(self, waiting: list[tuple[int, int]], error: Exception) -> None:
        for start, end in waiting:
            for at in range(start, end):
                self._blame(at, error)

    def _blame(self, at: int, error: Exception) -> None:
        row = int(self._rows[at])
        self._vectors[at] = np.nan
        self._failures[row] = _as_failure(error, row)


def _may_be_halved(error: Exception) -> bool:
    # Each try that gets no answer takes as long as a worker may be silent.
    return not (isinstance(error, WorkerCrashedError) and error.was_silent)


def _halves(start: int, end: int) -> list[tuple[int, int]]:
    middle = (start + end) // 2
    return [(middle, end), (start, middle)]  # the second is taken first


def _as_failure(error: Exception, row: int) -> ServiceError:
    if isinstance(error, InferenceError):
        return error.blamed_on(row)
    if isinstance(error, ServiceError):
        return error
    kind = OutOfMemoryError if is_out_of_memory(error) else InferenceError
    failure = kind(f"inference failed for text {row}: {type(error).__name__}: {error}", (row,))
    failure.__cause__ = error
    return failure
