"""`ProductionEmbeddingService`: texts to vectors, cached, batched, and each text computed once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, cast, overload

import numpy as np
from numpy.typing import NDArray

from services.embedding.backends.factory import configured_backend
from services.embedding.backends.protocol import Backend, BackendFacts, Prepared
from services.embedding.errors import NotOfferedError, QueueFullError
from services.embedding.items import as_items
from services.embedding.lifecycle import Lifecycle
from services.embedding.options import DEFAULT_OPTIONS, EmbedOptions, Item, Lane
from services.embedding.pipeline import Pipeline
from services.embedding.reranking import Reranker, configured_reranker
from services.embedding.results import (
    Embeddings,
    Resolved,
    VectorForm,
    as_batch,
    as_results,
    assemble,
    blamed,
)
from services.embedding.settings import EmbeddingSettings
from services.embedding.similarity import top_k
from shared.infrastructure.local_embeddings import EmbeddedChunk, EmbeddingBatch, Progress
from shared.infrastructure.local_embeddings.corpus import DEFAULT_WINDOW, embed_windows
from shared.infrastructure.local_embeddings.inference import as_texts
from shared.infrastructure.local_embeddings.reranking.reranker import as_query
from shared.infrastructure.resilience import (
    MONOTONIC,
    PLAIN_CALL,
    CallStats,
    Clock,
    ObserveLayer,
    Send,
    deadline,
    stack,
)
from shared.models.embedding import EmbeddingResult

# Seconds that a window of a corpus waits if a refusal does not say how long.
_PAUSE = 0.25


@dataclass(frozen=True, slots=True)
class _Call:
    items: Sequence[Item] | str
    options: EmbedOptions
    strict: bool = True


class ProductionEmbeddingService:
    """Embed texts with a local model or a remote server.

    Use it as `async with ProductionEmbeddingService() as service: await service.embed("Hello")`.
    Without `start` the first call starts it. It belongs to one event loop.

    Args:
        settings: Model, sizes and limits; `EmbeddingSettings.from_env()` reads them from the
            environment.
        backend: What embeds; default is what the settings describe.
        reranker: What `rerank` uses; default is what the settings describe, mostly none.
        clock: Source of monotonic time.

    Raises:
        CallRefusedError: The circuit is open, the queue is full or the service is stopped.
        DeadlineExceededError: It would take, or has taken, longer than the deadline allows.
        InvalidTextError: An item is no text.
        TextRejectedError: The model cannot embed one of the texts.
    """

    def __init__(
        self,
        settings: EmbeddingSettings | None = None,
        *,
        backend: Backend | None = None,
        reranker: Reranker | None = None,
        clock: Clock = MONOTONIC,
    ) -> None:
        self.settings = settings or EmbeddingSettings()
        self.reranker = reranker or configured_reranker(self.settings)
        self._backend = backend or configured_backend(self.settings, clock=clock)
        self._pipeline = Pipeline(self._backend, self.settings, clock)
        self._clock = clock
        self._lifecycle = Lifecycle(self._begin, self._finish)
        self._stats = CallStats()
        self._counts: Counter[str] = Counter()
        self._send: Send[_Call, Resolved] = stack(
            self._resolve, ObserveLayer(self._stats), semantics=PLAIN_CALL
        )

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self.settings.model_name

    @property
    def facts(self) -> BackendFacts:
        """What is known of the model; from `start` on."""
        return self._backend.facts

    @property
    def is_started(self) -> bool:
        """Whether it has started and not been told to stop."""
        return self._lifecycle.running

    @property
    def is_ready(self) -> bool:
        """Whether it has started, is not stopping, and its model is well."""
        return self._lifecycle.running and self._backend.is_healthy

    async def start(self) -> None:
        """Load the model and prove that it works; a second call changes nothing."""
        await self._lifecycle.start()

    async def stop(self) -> None:
        """Refuse new calls, finish those that are here, and let go of the model."""
        await self._lifecycle.stop()

    @overload
    async def embed(self, texts: str, *, dimensions: int | None = None) -> EmbeddingResult: ...
    @overload
    async def embed(
        self, texts: list[str] | tuple[str, ...], *, dimensions: int | None = None
    ) -> list[EmbeddingResult]: ...
    async def embed(
        self, texts: str | Sequence[str], *, dimensions: int | None = None
    ) -> EmbeddingResult | list[EmbeddingResult]:
        """Embed one text, or many in order.

        Args:
            texts: A text, or a sequence of texts; the empty text is one, too.
            dimensions: Keep only so many numbers of each vector and scale it to length 1 again, as
                Matryoshka models allow; None keeps all.
        """
        embeddings = await self.embed_batch(texts, EmbedOptions(dimensions=dimensions))
        results = as_results(embeddings, self.model_name)
        return results[0] if isinstance(texts, str) else results

    async def embed_batch(
        self, items: Sequence[Item] | str, options: EmbedOptions = DEFAULT_OPTIONS
    ) -> Embeddings:
        """Embed many texts, or token ids, into one array, in their order."""
        form = await self._form(options)
        return assemble(await self._send(_Call(items, options)), form, self.facts.fingerprint)

    async def embed_query(
        self, texts: Sequence[str] | str, *, dimensions: int | None = None
    ) -> NDArray[np.float32]:
        """Return vectors (n, dimensions) of texts that search, under the model's prompt for them.

        They are computed before those of other calls.
        """
        options = EmbedOptions(input_type="query", dimensions=dimensions, lane=Lane.INTERACTIVE)
        return (await self.embed_batch(texts, options)).vectors

    async def embed_document(
        self, texts: Sequence[str] | str, *, dimensions: int | None = None
    ) -> NDArray[np.float32]:
        """Return vectors (n, dimensions) of texts to be found, under the prompt for them."""
        options = EmbedOptions(input_type="document", dimensions=dimensions)
        return (await self.embed_batch(texts, options)).vectors

    async def embed_iter(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        options: EmbedOptions = DEFAULT_OPTIONS,
        *,
        window: int = DEFAULT_WINDOW,
        start: int = 0,
        progress: Callable[[Progress], object] | None = None,
    ) -> AsyncGenerator[EmbeddedChunk]:
        """Yield what comes of a corpus of any size, in its order; two windows are in memory.

        A text that fails is in its chunk's `failures`. It runs in the lane `BULK` unless the
        options say else. To go on after a crash, give the corpus from its beginning again, and as
        `start` the `end` of the last chunk that is safe; what the cache still has costs nothing.

        Args:
            texts: The corpus; an iterable is read on the event loop.
            options: How it is embedded.
            window: Texts of a chunk at most.
            start: Texts at the beginning to skip.
            progress: Called on the event loop after each chunk.
        """
        form = await self._form(options)
        options = replace(options, lane=options.lane or Lane.BULK)

        async def embed(part: tuple[str, ...]) -> EmbeddingBatch:
            while True:
                try:
                    resolved = await self._send(_Call(part, options, strict=False))
                    return as_batch(resolved, self.facts.dimension)
                except QueueFullError as exc:
                    # A corpus has time, and others are in line: its own last window, if nobody.
                    await self._clock.sleep(exc.retry_after or _PAUSE)

        done = Progress(start)
        chunks = embed_windows(texts, embed, form.finish, window=window, start=start)
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                if progress is not None:
                    done = Progress(
                        chunk.end,
                        done.tokens + sum(chunk.token_counts),
                        done.failed + len(chunk.failures),
                    )
                    progress(done)
                yield chunk

    async def compute_similarity(self, a: str, b: str) -> float:
        """Return the cosine of the angle between two texts, from -1 to 1."""
        first, second = (await self.embed_batch([a, b])).vectors
        return float(np.clip(first @ second, -1.0, 1.0))

    async def top_k(
        self, query: str, documents: Sequence[str] | NDArray[np.float32], k: int
    ) -> list[tuple[int, float]]:
        """Return the k documents nearest to a query, best first: their positions and cosines.

        Args:
            query: What is looked for.
            documents: Texts, or their vectors (n, dim) of length 1.
            k: How many; all if there are fewer.
        """
        if not isinstance(documents, np.ndarray):
            documents = await self.embed_document(documents)
        width = documents.shape[1] if documents.ndim == 2 else None
        vectors = await self.embed_query(query, dimensions=width)
        indices, scores = await asyncio.to_thread(top_k, vectors, documents, k)
        return list(zip(indices[0].tolist(), scores[0].tolist(), strict=True))

    async def count_tokens(
        self, items: Sequence[Item] | str, options: EmbedOptions = DEFAULT_OPTIONS
    ) -> list[int]:
        """Return the tokens the model would read of each item; a remote model's are estimated."""
        return [item.tokens for item in await self._prepared(items, options)]

    async def tokenize(
        self, texts: Sequence[str] | str, options: EmbedOptions = DEFAULT_OPTIONS
    ) -> list[list[int]]:
        """Return the token ids the model would read of each text.

        Raises:
            NotOfferedError: The model is remote.
        """
        ids = map(self._backend.token_ids, await self._prepared(texts, options))
        return [row.tolist() for row in ids]

    async def rerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_n: int | None = None,
        timeout: float | None = None,
    ) -> list[tuple[int, float]]:
        """Return positions and scores of texts, those first that answer the query best.

        Args and errors are those of `Reranker.rerank`; after `timeout` seconds it is given up.

        Raises:
            NotOfferedError: No reranker is configured.
        """
        if self.reranker is None:
            raise NotOfferedError(
                "no reranker is loaded: set EMBEDDING_RERANKER to a cross-encoder"
            )
        limit = self.settings.max_text_length
        query, texts = as_query(query)[:limit], [text[:limit] for text in as_texts(texts)]
        async with self._limit(timeout):
            await self._lifecycle.started()
            return await self.reranker.rerank(query, texts, top_n=top_n)

    async def warmup(self, texts: Sequence[str] = ("ready?",)) -> None:
        """Start, and embed some texts so that the first callers find everything warm."""
        await self.embed_batch(texts, EmbedOptions(lane=Lane.BULK))

    def clear_cache(self) -> None:
        """Forget every vector in memory and in the file; what is in Redis, others use, too."""
        self._pipeline.clear_cache()

    def get_metrics(self) -> dict[str, Any]:
        """Return a snapshot of plain JSON types; times are seconds, rates 0.0 to 1.0."""
        pipeline = self._pipeline.snapshot()
        counts = self._counts
        shared = counts["duplicates"] + pipeline["joined_count"] + pipeline["same_tokens_count"]
        items = {
            "cached": counts["cached"],
            "computed": pipeline["scheduler"]["row_count"],
            "inflight": shared,
        }
        return {
            "model": self.model_name,
            **self._stats.snapshot(),
            "items": items,
            "text_count": counts["texts"],
            "token_count": counts["tokens"],
            "cached_token_count": counts["cached_tokens"],
            "truncated_count": counts["truncated"],
            **pipeline,
            **self._backend.snapshot(),
            "reranker": self.reranker.snapshot() if self.reranker else None,
        }

    async def health_check(self) -> dict[str, Any]:
        """Ask the model, if it is loaded, and return `status`, `metrics` and the parts of both."""
        if self._lifecycle.running:
            await self._backend.check_health()
        metrics = self.get_metrics()
        return {
            "status": metrics["health"]["status"] if self._lifecycle.running else "stopped",
            "metrics": metrics,
            "circuit_breaker": metrics["circuit_breaker"],
            "rate_limiter": metrics["rate_limiter"],
        }

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _form(self, options: EmbedOptions) -> VectorForm:
        """Start if need be; refuse what cannot be had before any work is done for it."""
        if not self._lifecycle.running:
            await self._lifecycle.started()
        return VectorForm(self.facts.dimension, options)

    async def _begin(self) -> None:
        try:
            await self._backend.start()
            if self.reranker is not None:
                await self.reranker.start()
            await self._pipeline.start()
        except BaseException:
            await self._end()
            raise

    async def _finish(self) -> None:
        try:
            await self._pipeline.stop()
        finally:
            await self._end()

    async def _end(self) -> None:
        try:
            if self.reranker is not None:
                await self.reranker.stop()
        finally:
            await self._backend.stop()

    async def _resolve(self, call: _Call) -> Resolved:
        resolved = await self._pipeline.run(as_items(call.items), call.options, strict=call.strict)
        self._count(resolved)
        return resolved

    async def _prepared(self, items: Sequence[Item] | str, options: EmbedOptions) -> list[Prepared]:
        async with self._limit(options.timeout):
            await self._lifecycle.started()
            prepared = await self._pipeline.prepare(as_items(items), options)
        for row, item in enumerate(prepared):
            if isinstance(item, Exception):
                raise blamed(item, row)
        return cast("list[Prepared]", prepared)

    def _limit(self, timeout: float | None) -> AbstractAsyncContextManager[None]:
        if timeout is None:
            return contextlib.nullcontext()
        return deadline(timeout, clock=self._clock)

    def _count(self, resolved: Resolved) -> None:
        counts, tokens, cached = self._counts, resolved.token_counts, resolved.cached
        counts["texts"] += len(tokens)
        counts["cached"] += sum(cached)
        counts["duplicates"] += resolved.duplicates
        counts["tokens"] += sum(tokens)
        counts["cached_tokens"] += sum(itertools.compress(tokens, cached))
        counts["truncated"] += sum(resolved.truncated)
