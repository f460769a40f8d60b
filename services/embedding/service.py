"""`ProductionEmbeddingService`: texts to vectors, cached, batched, and each text computed once."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from services.embedding.backends import TEXT_FAULTS, Backend, LocalBackend
from services.embedding.batcher import Batcher, BatcherConfig, Outcome
from services.embedding.cache import EmbeddingCache, key_function
from services.embedding.errors import (
    InvalidDimensionsError,
    ServiceStoppedError,
    TextRejectedError,
)
from services.embedding.remote import RemoteBackend
from services.embedding.settings import EmbeddingSettings
from services.embedding.texts import KeyedTexts, keyed
from shared.infrastructure.local_embeddings import (
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    NonFiniteVectorError,
    normalized,
)
from shared.infrastructure.resilience import (
    PLAIN_CALL,
    CallStats,
    ObserveLayer,
    Send,
    stack,
)
from shared.models.embedding import EmbeddingResult


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Some embedded texts, in the order they were given.

    Attributes:
        vectors: float32 of shape (n, dimensions), each row of length 1.
        token_counts: Tokens the model read of each text.
        truncated: Whether the end of each text was cut off.
        cached: Whether each vector came out of the cache.
    """

    vectors: NDArray[np.float32]
    token_counts: Sequence[int]
    truncated: Sequence[bool]
    cached: Sequence[bool]


@dataclass(frozen=True, slots=True)
class _Call:
    texts: Sequence[str]
    dimensions: int | None


class ProductionEmbeddingService:
    """Embed texts with a local model or a remote server.

    Use it as `async with ProductionEmbeddingService() as service: await service.embed("Hello")`.
    Without `start` the first call starts it. It belongs to one event loop.

    Args:
        settings: Model, sizes and limits; `EmbeddingSettings.from_env()` reads them from the
            environment.
        backend: What embeds; default is what the settings describe.

    Raises:
        CallRefusedError: The circuit is open, the queue is full or the service is stopped.
        InvalidTextError: An item is no text.
        TextRejectedError: The model cannot embed one of the texts.
    """

    def __init__(
        self,
        settings: EmbeddingSettings | None = None,
        *,
        backend: Backend | None = None,
    ) -> None:
        self.settings = settings or EmbeddingSettings()
        self._backend = backend or _configured_backend(self.settings)
        self._cache = EmbeddingCache(self.settings.cache_size)
        self._batcher = Batcher(
            self._backend.embed_batch,
            self._cache,
            BatcherConfig(
                max_rows=self.settings.batch_size,
                max_characters=self.settings.max_batch_characters,
                max_queue=self.settings.max_queue,
                concurrency=self._backend.concurrency,
            ),
        )
        self._lifecycle = asyncio.Lock()
        self._startup: asyncio.Task[None] | None = None
        self._running = False
        self._stopped = False
        self._key: Callable[[bytes], bytes] = key_function("")
        self._stats = CallStats()
        self._counts = {"texts": 0, "cached": 0, "duplicates": 0, "tokens": 0, "cached_tokens": 0}
        self._send: Send[_Call, Embeddings] = stack(
            self._embed, ObserveLayer(self._stats), semantics=PLAIN_CALL
        )

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self._backend.model_name

    @property
    def is_started(self) -> bool:
        """Whether it has started and not been told to stop."""
        return self._running

    @property
    def is_ready(self) -> bool:
        """Whether it has started, is not stopping, and its model is well."""
        return self._running and self._backend.is_healthy

    async def start(self) -> None:
        """Load the model and prove that it works; a second call changes nothing."""
        async with self._lifecycle:
            self._stopped = False
        await self._started()

    async def stop(self) -> None:
        """Refuse new calls, finish those that are here, and let go of the model."""
        async with self._lifecycle:
            self._stopped, self._running = True, False
            if self._startup is None:
                return
            with contextlib.suppress(Exception):  # those who wait for the start are told of it
                await asyncio.shield(self._startup)
            await self._batcher.stop()
            await self._backend.stop()
            self._startup, self._running = None, False

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
        if isinstance(texts, str):
            return self._results(await self.embed_batch([texts], dimensions=dimensions))[0]
        return self._results(await self.embed_batch(texts, dimensions=dimensions))

    async def embed_batch(
        self, texts: Sequence[str], *, dimensions: int | None = None
    ) -> Embeddings:
        """Embed many texts into one array; otherwise as `embed`."""
        return await self._send(_Call(texts, dimensions))

    async def compute_similarity(self, a: str, b: str) -> float:
        """Return the cosine of the angle between two texts, from -1 to 1."""
        first, second = (await self.embed_batch([a, b])).vectors
        return float(np.clip(first @ second, -1.0, 1.0))

    def get_metrics(self) -> dict[str, Any]:
        """Return a snapshot of plain JSON types; times are seconds, rates 0.0 to 1.0."""
        batches = self._batcher.snapshot()
        return {
            "model": self.model_name,
            **self._stats.snapshot(),
            "items": {
                "cached": self._counts["cached"],
                "computed": batches["batched_count"],
                "inflight": batches["joined_count"] + self._counts["duplicates"],
            },
            "text_count": self._counts["texts"],
            "token_count": self._counts["tokens"],
            "cached_token_count": self._counts["cached_tokens"],
            **batches,
            "cache": self._cache.snapshot(),
            **self._backend.snapshot(),
        }

    async def health_check(self) -> dict[str, Any]:
        """Ask the model, if it is loaded, and return `status`, `metrics` and the parts of both."""
        if self._running:
            await self._backend.check_health()
        metrics = self.get_metrics()
        return {
            "status": metrics["health"]["status"] if self._running else "stopped",
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

    async def _started(self) -> None:
        if self._running:
            return
        if self._stopped:
            raise ServiceStoppedError("the embedding service has been stopped")
        if self._startup is None:
            # A task of its own, outside of anybody's deadline: a caller who gives up starting
            # must not take the start away from the others.
            self._startup = asyncio.create_task(self._begin(), context=contextvars.Context())
            self._startup.add_done_callback(self._on_started)
        await asyncio.shield(self._startup)

    async def _begin(self) -> None:
        try:
            await self._backend.start()
        except BaseException:
            await self._backend.stop()
            raise
        self._key = key_function(self._backend.fingerprint)
        self._batcher.start()

    def _on_started(self, startup: asyncio.Task[None]) -> None:
        if startup.cancelled() or startup.exception() is not None:
            self._startup = None
        else:
            self._running = not self._stopped

    async def _embed(self, call: _Call) -> Embeddings:
        await self._started()
        width = self._width(call.dimensions)
        texts = await keyed(call.texts, self._key, self.settings.max_text_length)
        outcomes: dict[bytes, Outcome] = {}
        missing: dict[bytes, str] = {}
        for key, text in texts.different.items():
            entry = self._cache.get(key)
            if entry is None:
                missing[key] = text
            else:
                outcomes[key] = entry
        if missing:
            outcomes.update(await self._batcher.embed(missing))
        return self._assemble(texts, outcomes, missing, width)

    def _width(self, dimensions: int | None) -> int:
        own = self._backend.dimension
        if dimensions is None:
            return own
        if not 1 <= dimensions <= own:
            raise InvalidDimensionsError(
                f"dimensions must be from 1 to {own}, the model's own, not {dimensions}"
            )
        return dimensions

    def _assemble(
        self,
        texts: KeyedTexts,
        outcomes: Mapping[bytes, Outcome],
        missing: Mapping[bytes, str],
        width: int,
    ) -> Embeddings:
        vectors = np.empty((len(texts.keys), width), np.float32)
        tokens: list[int] = []
        truncated: list[bool] = []
        for row, key in enumerate(texts.keys):
            outcome = outcomes[key]
            if isinstance(outcome, Exception):
                raise _blamed(outcome, row)
            vectors[row] = outcome.vector[:width]
            tokens.append(outcome.token_count)
            truncated.append(texts.cut[row] or outcome.truncated)
        if not np.isfinite(vectors).all():
            raise NonFiniteVectorError(f"{self.model_name} answered NaN or infinity")
        cached = [key not in missing for key in texts.keys]
        self._count(tokens, cached, len(outcomes))
        return Embeddings(normalized(vectors), tokens, truncated, cached)

    def _count(self, tokens: Sequence[int], cached: Sequence[bool], different: int) -> None:
        counts = self._counts
        counts["texts"] += len(tokens)
        counts["cached"] += sum(cached)
        counts["duplicates"] += len(tokens) - different
        counts["tokens"] += sum(tokens)
        counts["cached_tokens"] += sum(
            count for count, hit in zip(tokens, cached, strict=True) if hit
        )

    def _results(self, embeddings: Embeddings) -> list[EmbeddingResult]:
        rows = zip(
            embeddings.vectors.tolist(),
            embeddings.token_counts,
            embeddings.truncated,
            embeddings.cached,
            strict=True,
        )
        return [
            EmbeddingResult(
                embedding=vector,
                token_count=tokens,
                truncated=truncated,
                cached=cached,
                model=self.model_name,
            )
            for vector, tokens, truncated, cached in rows
        ]


def _blamed(error: Exception, index: int) -> Exception:
    """Return the error to raise for the text at `index`; errors are shared between callers."""
    if not isinstance(error, TEXT_FAULTS):
        return error
    rejected = TextRejectedError(f"text {index} cannot be embedded: {error}", index)
    rejected.__cause__ = error
    return rejected


def _configured_backend(settings: EmbeddingSettings) -> Backend:
    if settings.remote_url is not None:
        return RemoteBackend(settings)
    config = LocalEmbeddingConfig(
        model_name=settings.model_name,
        backend=settings.backend,
        device=settings.device,
        batch_size=settings.batch_size,
        threads=settings.threads,
        cache_dir=settings.cache_dir,
    )
    return LocalBackend(LocalEmbeddingModel(config))
