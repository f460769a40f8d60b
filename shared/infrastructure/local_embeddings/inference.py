"""One call on its way through the model: tokens, then passes on the workers, then one answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np

from shared.infrastructure.local_embeddings.batching import Rows, plan_passes
from shared.infrastructure.local_embeddings.config import TokenizeOptions
from shared.infrastructure.local_embeddings.engine import Engine
from shared.infrastructure.local_embeddings.errors import (
    InferenceError,
    InvalidTextError,
    NonFiniteVectorError,
    OutOfMemoryError,
)
from shared.infrastructure.local_embeddings.passes import EmbeddedRows, Pass
from shared.infrastructure.local_embeddings.tokenizing import (
    CHUNK_CHARACTERS,
    count_characters,
    tokenize,
    tokenize_chunk,
)
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.local_embeddings.vectors import Vectors
from shared.infrastructure.resilience.errors import ConfigurationError, ServiceError
from shared.infrastructure.resilience.layer import PlainCall, Settle, Verdict

Res = TypeVar("Res")


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """What a caller asks for.

    Attributes:
        given: Texts to embed, or their tokens.
        options: How texts become tokens.
        on_rows: Called on the event loop with the texts of each pass as it ends.
    """

    given: tuple[str, ...] | TokenBatch
    options: TokenizeOptions = field(default_factory=TokenizeOptions)
    on_rows: Callable[[EmbeddedRows], object] = lambda _: None


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingBatch:
    """What the model said of some texts, in their order.

    Attributes:
        vectors: Pooled vectors that are not normalised, float32 of shape (n, dim); NaN where one
            failed.
        token_counts: Tokens read of each text, special tokens included.
        truncated: Whether a text was too long, so that one end of it was not read.
        failures: What went wrong with a text, by its position; empty if all went well.
    """

    vectors: Vectors
    token_counts: tuple[int, ...]
    truncated: tuple[bool, ...]
    failures: Mapping[int, ServiceError] = field(default_factory=dict[int, ServiceError])

    def __len__(self) -> int:
        return len(self.token_counts)

    def error(self) -> ServiceError | None:
        """Return one error for all failures, or None; the rest of the batch is its `partial`."""
        if not self.failures:
            return None
        rows = tuple(sorted(self.failures))
        error = self.failures[rows[0]]
        if len(rows) > 1:
            message = f"{len(rows)} texts could not be embedded, the first: {error}"
            kinds = {type(failure) for failure in self.failures.values()}
            kind = NonFiniteVectorError if kinds == {NonFiniteVectorError} else InferenceError
            first, error = error, kind(message, rows)
            error.__cause__ = first
        if isinstance(error, InferenceError):
            error.partial = self
        return error


class Inference:
    """A call under way; made and run on the event loop, while its caller holds the engine.

    Args:
        engine: The open model.
        call: What is asked for.
    """

    def __init__(self, engine: Engine, call: EmbedCall) -> None:
        self._engine = engine
        self._backend = engine.backend
        self._limits = engine.limits
        self._call = call
        self._failures: dict[int, ServiceError] = {}
        self._running: set[asyncio.Future[EmbeddedRows]] = set()

    async def run(self) -> EmbeddingBatch:
        """Return what came of the texts.

        Raises:
            InvalidTextError: A text cannot be read; none was embedded.
        """
        try:
            if self._is_short():
                tokens, first = await self._engine.run(self._begin)
            else:
                tokens, first = await self._tokenized(), None
            vectors = np.empty((len(tokens), self._backend.spec.dimension), np.float32)
            if first:
                self._settle(first, vectors)
            else:
                await self._run_passes(tokens, vectors)
        except BaseException:
            for job in self._running:
                job.cancel()
            raise
        return EmbeddingBatch(
            vectors,
            tuple(tokens.lengths.tolist()),
            tuple(tokens.truncated.tolist()),
            self._failures,
        )

    def _begin(self) -> tuple[TokenBatch, EmbeddedRows | None]:
        """Tokenize a short call; embed it as well, if it is no more than one pass."""
        given = self._call.given
        if not isinstance(given, TokenBatch):
            given = tokenize_chunk(self._engine, given, self._call.options)
        passes = list(itertools.islice(self._plan(given), 2))
        if len(passes) != 1:
            return given, None
        return given, Pass(self._backend, given, passes[0], self._limits)()

    def _is_short(self) -> bool:
        given = self._call.given
        if len(given) > self._limits.max_rows:
            return False
        if isinstance(given, TokenBatch):
            return True
        characters = count_characters(given, self._call.options, self._backend.spec)
        return characters <= CHUNK_CHARACTERS

    async def _tokenized(self) -> TokenBatch:
        given = self._call.given
        if isinstance(given, TokenBatch):
            return given
        return await tokenize(self._engine, given, self._call.options)

    def _plan(self, tokens: TokenBatch) -> Iterator[Rows]:
        return plan_passes(
            tokens.lengths,
            max_rows=self._limits.max_rows,
            max_tokens=lambda: self._limits.budget.current,
            packed=self._backend.spec.packed,
        )

    async def _run_passes(self, tokens: TokenBatch, vectors: Vectors) -> None:
        # One pass more than there are workers, so that none waits for the event loop; no more, so
        # that the passes of other calls come in between.
        ahead = self._engine.workers + 1
        for rows in self._plan(tokens):
            if len(self._running) == ahead:
                await self._settle_next(vectors)
            job = Pass(self._backend, tokens, rows, self._limits)
            self._running.add(self._engine.run(job))
        while self._running:
            await self._settle_next(vectors)

    async def _settle_next(self, vectors: Vectors) -> None:
        done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        for job in done:
            self._settle(job.result(), vectors)

    def _settle(self, embedded: EmbeddedRows, vectors: Vectors) -> None:
        vectors[embedded.rows] = embedded.vectors
        self._failures.update(embedded.failures)
        self._call.on_rows(embedded)


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


class InferenceSemantics(PlainCall):
    """A text or a setting that is wrong says nothing about the model."""

    def judge(self, outcome: object) -> Verdict:
        if isinstance(outcome, ConfigurationError):
            return Verdict.VOID
        if isinstance(outcome, EmbeddingBatch) and len(outcome.failures) == len(outcome) > 0:
            blamed = (NonFiniteVectorError, OutOfMemoryError)
            failed = outcome.failures.values()
            all_texts = all(isinstance(failure, blamed) for failure in failed)
            return Verdict.VOID if all_texts else Verdict.FAILED
        return super().judge(outcome)

    def watch(self, response: Res, settle: Settle) -> Res:
        settle(self.judge(response))
        return response
