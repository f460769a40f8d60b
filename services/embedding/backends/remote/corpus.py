"""Embed very many texts by a server, past the queues that single calls stand in."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.embedding.backends.protocol import CANARY
from services.embedding.backends.remote.dialects import Form
from services.embedding.backends.remote.endpoint import Endpoint, Part
from services.embedding.backends.remote.packing import estimated_each, packed
from services.embedding.backends.remote.reply import Reply, Vectors
from services.embedding.errors import ModelChangedError
from shared.infrastructure.local_embeddings import InvalidTextError
from shared.infrastructure.resilience import CallRefusedError, Clock, ConfigurationError

Progress = Callable[[int], object]
"""Told how many texts are done, failures included, after each request."""


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedCorpus:
    """What came of each text of a corpus.

    Attributes:
        vectors: As the server gave them; float32 of shape (texts, dimension), NaN where there is
            none.
        tokens: Tokens of them all, as the server counted them; 0 if it does not say.
        failures: Why there is none, by the place of the text.
    """

    vectors: Vectors
    tokens: int
    failures: Mapping[int, Exception]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How a corpus is sent.

    Attributes:
        max_items: Texts in a request at most.
        max_tokens: Tokens in a request at most, estimated.
        concurrency: Requests at the same time at most; the endpoint may allow fewer.
        patience: Seconds without a success after which an open breaker is no longer waited for.
    """

    max_items: int
    max_tokens: int
    concurrency: int
    patience: float


class CorpusRun:
    """One pass over a corpus.

    Args:
        endpoint: Where it is sent.
        form: What all texts have in common.
        bounds: How it is sent.
        clock: Source of monotonic time.
        progress: Told how far it is.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        form: Form,
        bounds: Bounds,
        *,
        clock: Clock,
        progress: Progress | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._form = form
        self._bounds = bounds
        self._clock = clock
        self._progress = progress
        self._failures: dict[int, Exception] = {}
        self._last_success = clock.now()
        self._done = self._tokens = 0
        # What no other request would survive either.
        self._fatal: Exception | None = None

    async def embed(self, texts: Sequence[str]) -> EmbeddedCorpus:
        """Return what came of each text. If this is cancelled, so is every request."""
        texts, tokens = self._sendable(texts)
        vectors: Vectors = np.empty((len(texts), self._endpoint.dimension), np.float32)
        bounds = self._bounds
        requests = list(packed(tokens, bounds.max_items, bounds.max_tokens))
        left = iter(requests)

        async def work() -> None:
            for rows in left:  # each takes the next
                batch = texts[rows.start : rows.stop]
                for part, result in await self._parts(batch):
                    at = slice(rows.start + part.start, rows.start + part.stop)
                    if isinstance(result, Reply):
                        vectors[at] = result.vectors
                        self._tokens += result.total_tokens
                    else:
                        self._fail(range(at.start, at.stop), result)
                self._advance(len(rows))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(bounds.concurrency, len(requests))):
                group.create_task(work())
        vectors[list(self._failures)] = math.nan
        return EmbeddedCorpus(vectors, self._tokens, dict(sorted(self._failures.items())))

    def _sendable(self, texts: Sequence[str]) -> tuple[Sequence[str], NDArray[np.int64]]:
        """Return texts that requests can hold, and their tokens.

        What cannot be sent has failed already; something harmless goes in its place, so that rows
        of a request stay rows of the corpus.
        """
        try:
            return texts, estimated_each(texts)
        except UnicodeEncodeError:
            pass
        sendable = list(texts)
        for place, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as exc:
                self._failures[place] = InvalidTextError(f"text {place} is no Unicode: {exc}")
                sendable[place] = CANARY
        return sendable, estimated_each(sendable)

    def _fail(self, rows: range, error: Exception) -> None:
        for row in rows:
            self._failures.setdefault(row, error)

    async def _parts(self, batch: Sequence[str]) -> Sequence[Part]:
        """Return what came of a request; what an open breaker refused of it is sent again."""
        done: list[Part] = []
        left = deque([range(len(batch))])
        while left:
            rows = left.popleft()
            if self._fatal is not None:
                done.append(Part(rows, self._fatal))
                continue
            parts = await self._endpoint.embed(batch[rows.start : rows.stop], self._form)
            self._learn(parts)
            waits: list[float] = []
            for part in parts:
                at = rows[part.rows.start : part.rows.stop]
                wait = self._wait(part.result)
                if wait is None:
                    done.append(Part(at, part.result))
                else:
                    left.append(at)
                    waits.append(wait)
            if waits:
                await self._clock.sleep(max(waits))
        return done

    def _learn(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if isinstance(part.result, Reply):
                self._last_success = self._clock.now()
            elif isinstance(part.result, ConfigurationError | ModelChangedError):
                self._fatal = part.result

    def _wait(self, result: Reply | Exception) -> float | None:
        """Return the seconds until it makes sense to send what was refused again, if it does."""
        if not isinstance(result, CallRefusedError) or result.retry_after is None:
            return None
        waited = self._clock.now() - self._last_success
        return None if waited + result.retry_after > self._bounds.patience else result.retry_after

    def _advance(self, texts: int) -> None:
        self._done += texts
        if self._progress is not None:
            self._progress(self._done)
