"""Corpora of any size: windows of texts, a bounded number of them in memory, results in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
)
from dataclasses import dataclass
from typing import Any, cast

from shared.infrastructure.local_embeddings.errors import InvalidTextError
from shared.infrastructure.local_embeddings.inference import EmbeddingBatch
from shared.infrastructure.local_embeddings.passes import EmbeddedRows
from shared.infrastructure.local_embeddings.vectors import Vectors
from shared.infrastructure.resilience.errors import ConfigurationError, ServiceError

# Windows under way at the same time: while the last passes of one leave workers idle, the next one
# keeps them busy.
_AHEAD = 2

DEFAULT_WINDOW = 2048
_CHARACTERS_PER_TEXT = 2048


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedChunk:
    """What came of consecutive texts of a corpus.

    Attributes:
        start: Position of the first text in the corpus.
        vectors: Vectors of the texts, float32 of shape (n, dim); NaN where one failed.
        token_counts: Tokens read of each text, special tokens included.
        truncated: Whether a text was too long, so that one end of it was not read.
        failures: What went wrong with a text, by its position in the corpus.
    """

    start: int
    vectors: Vectors
    token_counts: tuple[int, ...]
    truncated: tuple[bool, ...]
    failures: Mapping[int, ServiceError]

    def __len__(self) -> int:
        return len(self.token_counts)

    @property
    def end(self) -> int:
        """Position after the last text: where to `start` if this chunk is safe."""
        return self.start + len(self)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a corpus is.

    Attributes:
        texts: Texts done, those that were skipped included.
        tokens: Tokens computed.
        failed: Texts that failed.
    """

    texts: int = 0
    tokens: int = 0
    failed: int = 0


class ProgressMeter:
    """Counts the texts of passes as they end, and tells of it.

    Args:
        start: Texts that were skipped.
        tell: Called with the new state after each pass.
    """

    def __init__(self, start: int, tell: Callable[[Progress], object]) -> None:
        self._state = Progress(start)
        self._tell = tell

    def __call__(self, rows: EmbeddedRows) -> None:
        state = self._state
        self._state = Progress(
            state.texts + len(rows),
            state.tokens + int(rows.token_counts.sum()),
            state.failed + len(rows.failures),
        )
        self._tell(self._state)


async def embed_windows(
    texts: Iterable[str] | AsyncIterable[str],
    embed: Callable[[tuple[str, ...]], Coroutine[Any, Any, EmbeddingBatch]],
    finish: Callable[[Vectors], Vectors],
    *,
    window: int,
    start: int,
) -> AsyncGenerator[EmbeddedChunk]:
    """Yield what came of the texts, in their order, a window at a time.

    Args:
        texts: The corpus, from its beginning; read on the event loop, as far as it is needed.
        embed: Embeds the texts of a window.
        finish: Turns the model's vectors into those the caller wants.
        window: Texts in a window at most; long texts make it shorter.
        start: Texts at the beginning to skip.
    """
    if window < 1 or start < 0:
        raise ConfigurationError(
            f"window must be at least 1 and start at least 0, not {window} and {start}"
        )
    under_way: deque[tuple[int, asyncio.Task[EmbeddingBatch]]] = deque()
    windows = _windows(texts, window, start)
    try:
        async for position, part in windows:
            under_way.append((position, asyncio.create_task(embed(part))))
            if len(under_way) == _AHEAD:
                yield await _next(under_way, finish)
        while under_way:
            yield await _next(under_way, finish)
    finally:
        # A consumer that stops, or a window that failed, leaves nothing running.
        for _, task in under_way:
            task.cancel()
        await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
        await windows.aclose()


async def _next(
    under_way: deque[tuple[int, asyncio.Task[EmbeddingBatch]]],
    finish: Callable[[Vectors], Vectors],
) -> EmbeddedChunk:
    start, task = under_way[0]
    try:
        batch = await task
    except InvalidTextError as exc:
        raise exc.moved(start) from exc.__cause__
    under_way.popleft()
    failures = {start + row: failure for row, failure in batch.failures.items()}
    vectors = finish(batch.vectors)
    return EmbeddedChunk(start, vectors, batch.token_counts, batch.truncated, failures)


async def _windows(
    texts: Iterable[str] | AsyncIterable[str], size: int, start: int
) -> AsyncGenerator[tuple[int, tuple[str, ...]]]:
    """Yield windows, each with the position of its first text."""
    window: list[str] = []
    position = 0
    characters = 0
    async for text in _each(texts):
        position += 1
        if position <= start:
            continue
        if not isinstance(cast("object", text), str):
            kind = type(text).__name__
            raise InvalidTextError(
                f"text {position - 1} must be a string, not {kind}", position - 1
            )
        window.append(text)
        characters += len(text)
        if len(window) == size or characters >= size * _CHARACTERS_PER_TEXT:
            yield position - len(window), tuple(window)
            window, characters = [], 0
    if window:
        yield position - len(window), tuple(window)


async def _each(texts: Iterable[str] | AsyncIterable[str]) -> AsyncGenerator[str]:
    if isinstance(texts, AsyncIterable):
        async for text in texts:
            yield text
    elif isinstance(texts, str):
        raise InvalidTextError("a corpus is an iterable of strings, not one string")
    else:
        for text in texts:
            yield text
