"""A local embedding model: the SDK's layers over inference on threads of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from typing import Any, Self

from shared.infrastructure.local_embeddings.backends import (
    BackendSpec,
    EmbeddingBackend,
    open_backend,
)
from shared.infrastructure.local_embeddings.config import (
    LocalEmbeddingConfig,
    TokenizeOptions,
    Truncation,
)
from shared.infrastructure.local_embeddings.corpus import (
    DEFAULT_WINDOW,
    EmbeddedChunk,
    Progress,
    ProgressMeter,
    embed_windows,
)
from shared.infrastructure.local_embeddings.engine import Engine
from shared.infrastructure.local_embeddings.errors import (
    MemoryPressureError,
)
from shared.infrastructure.local_embeddings.inference import (
    EmbedCall,
    EmbeddingBatch,
    Inference,
    InferenceSemantics,
    as_texts,
)
from shared.infrastructure.local_embeddings.limits import limits_of
from shared.infrastructure.local_embeddings.memory.governor import MemoryGovernor
from shared.infrastructure.local_embeddings.model_files.prompts import prompt_for
from shared.infrastructure.local_embeddings.passes import EmbeddedRows
from shared.infrastructure.local_embeddings.vectors import (
    Vectors,
    check_dimensions,
    normalized,
    shortened,
)
from shared.infrastructure.resilience.bulkhead import Bulkhead, BulkheadConfig, BulkheadLayer
from shared.infrastructure.resilience.circuit_breaker import CircuitBreaker, CircuitBreakerConfig
from shared.infrastructure.resilience.circuit_layers import CircuitBreakerLayer, CircuitGate
from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import ConfigurationError, ServiceError
from shared.infrastructure.resilience.layer import Send, stack

# Seconds that bulk work waits for memory, at most and from one look to the next.
_MEMORY_PATIENCE = 60.0
_MEMORY_PAUSE = 0.25

BackendFactory = Callable[[LocalEmbeddingConfig], EmbeddingBackend]


class LocalEmbeddingModel:
    """An embedding model in this process.

    All its work is done on threads that it owns, so that the event loop stays free. Calls take
    turns there, so that a short one need not wait for the end of a long one, and a cancelled call
    stops at its next turn. The model belongs to no event loop: it may be used from one after
    another, but not from two at once.

    ::

        async with LocalEmbeddingModel(LocalEmbeddingConfig(backend=ModelBackend.ONNX)) as model:
            vectors = await model.embed(["cat", "kitten"])

    Args:
        config: What to load and how to run it.
        clock: Source of monotonic time.
        backend_factory: Loads the model, on its thread; given to run one that is none of
            `ModelBackend`, or a scripted one in a test.
        workers: Forward passes at the same time over one copy of the weights, if the backend can;
            None is one on a CPU, two on a GPU.
        governor: Watches the memory; None is one for this model alone.
    """

    def __init__(
        self,
        config: LocalEmbeddingConfig | None = None,
        *,
        clock: Clock = MONOTONIC,
        backend_factory: BackendFactory = open_backend,
        workers: int | None = None,
        governor: MemoryGovernor | None = None,
    ) -> None:
        self.config = config = config or LocalEmbeddingConfig()
        self._clock = clock
        self._backend_factory = backend_factory
        self._workers = workers
        self._governor = governor or MemoryGovernor()
        self._engine: Engine | None = None
        self._spec: BackendSpec | None = None
        # No rate rule: a model whose users bring bad texts is well.
        rules = CircuitBreakerConfig(failure_rate=None)
        self._breaker = CircuitBreaker(config.model_name, rules, clock=clock)
        self._bulkhead = Bulkhead(
            BulkheadConfig(max_concurrent=config.max_concurrent, max_queue=config.max_queue),
            clock=clock,
        )
        self._send: Send[EmbedCall, EmbeddingBatch] = stack(
            self._infer,
            CircuitGate(self._breaker),
            BulkheadLayer(self._bulkhead),
            CircuitBreakerLayer(self._breaker),
            semantics=InferenceSemantics(),
        )

    async def __aenter__(self) -> Self:
        await self.load()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.unload()

    async def load(self) -> None:
        """Load the model unless it is loaded; callers at the same time share one load.

        A cancelled caller leaves the load running: the next one finds it done.

        Raises:
            ModelNotFoundError: Nothing on this machine or the hub has the model.
            UnsupportedModelError: The backend cannot run it.
            DeviceUnavailableError: The device asked for is not there.
            MissingExtraError: The library of the backend is not installed.
            ModelLoadError: The library failed.
        """
        await self._open(await self._current())

    async def unload(self) -> None:
        """Wait for running calls, then give the model's memory back; do nothing if unloaded.

        Calls that begin meanwhile wait, and load the model again.
        """
        engine = self._engine
        if engine is None:
            return
        engine.retire()
        error = await engine.closed()
        self._forget(engine)
        if error:
            raise error

    async def embed(
        self,
        texts: Sequence[str] | str,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        truncation: Truncation | None = None,
    ) -> Vectors:
        """Return one vector a text, float32 of shape (n, dimensions), in the order of the texts.

        The vectors have length 1 unless `config.normalize` is off; one text may be given as a
        plain string (n = 1), and no texts give shape (0, dimensions). The model is loaded if it is
        not, also after an `unload`.

        Args:
            texts: What to embed.
            prompt_name: One of the model's prompts, to be put before each text.
            prompt: A prompt of your own instead; "" is none, None the model's default one.
            dimensions: How many of the vector's first numbers are wanted; None is
                `config.dimensions`, else what the model's authors want. Only models trained for it
                (Matryoshka) make good use of it.
            truncation: Which end of a text is dropped if it is too long; None is the model's own.

        Raises:
            InvalidTextError: An item is no text, or too long for `Truncation.NONE`.
            ConfigurationError: The model has no such prompt, or not so many dimensions.
            InferenceError: The model failed; `indexes` says for which texts, and `partial` holds
                what came of the others.
            BulkheadFullError: More calls wait than `config.max_queue`.
            CircuitOpenError: The model failed time after time, and is given a rest.
        """
        texts = as_texts(texts)  # those of now: loading may take a while
        finish = await self._finisher(dimensions)
        batch = await self.embed_batch(
            texts, prompt_name=prompt_name, prompt=prompt, truncation=truncation
        )
        if error := batch.error():
            raise error
        return finish(batch.vectors)

    async def embed_query(
        self,
        texts: Sequence[str] | str,
        *,
        dimensions: int | None = None,
        truncation: Truncation | None = None,
    ) -> Vectors:
        """Return what `embed` does with the model's prompt for queries, if it has one.

        Raises:
            ServiceError: As `embed` does.
        """
        prompt = prompt_for((await self._loaded()).prompts, "query")
        return await self.embed(texts, prompt=prompt, dimensions=dimensions, truncation=truncation)

    async def embed_document(
        self,
        texts: Sequence[str] | str,
        *,
        dimensions: int | None = None,
        truncation: Truncation | None = None,
    ) -> Vectors:
        """Return what `embed` does with the model's prompt for documents, if it has one.

        Raises:
            ServiceError: As `embed` does.
        """
        prompt = prompt_for((await self._loaded()).prompts, "document")
        return await self.embed(texts, prompt=prompt, dimensions=dimensions, truncation=truncation)

    async def embed_batch(
        self,
        texts: Sequence[str] | str,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncation: Truncation | None = None,
        on_rows: Callable[[EmbeddedRows], object] | None = None,
    ) -> EmbeddingBatch:
        """Return vectors that are not normalised, with token counts; a bad text fails alone.

        Args:
            texts: What to embed.
            prompt_name: As in `embed`.
            prompt: As in `embed`.
            truncation: As in `embed`.
            on_rows: Called on the event loop with the texts of each forward pass as it ends.

        Raises:
            ServiceError: As `embed` does, but for `InferenceError`: that of a text is in
                `failures`.
        """
        texts = as_texts(texts)
        if prompt_name is not None:
            prompt = await self._prompt(prompt_name)
        options = TokenizeOptions(prompt, truncation)
        return await self._send(EmbedCall(texts, options, on_rows or _ignore))

    async def embed_iter(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        prompt: str | None = None,
        dimensions: int | None = None,
        truncation: Truncation | None = None,
        window: int = DEFAULT_WINDOW,
        start: int = 0,
        progress: Callable[[Progress], object] | None = None,
    ) -> AsyncGenerator[EmbeddedChunk]:
        """Yield what comes of a corpus of any size, in its order; two windows are in memory.

        A text that fails is in its chunk's `failures`. While memory is short the next window waits.
        To go on after a crash, give the corpus from its beginning again, and as `start` the `end`
        of the last chunk that is safe.

        Args:
            texts: The corpus; an iterable is read on the event loop.
            prompt: As in `embed`.
            dimensions: As in `embed`.
            truncation: As in `embed`.
            window: Texts of a chunk at most; only texts of one window are sorted by length.
            start: Texts at the beginning to skip.
            progress: Called on the event loop after each forward pass.

        Raises:
            MemoryPressureError: Memory has been short for a minute.
            ServiceError: As `embed_batch` does.
        """
        on_rows = ProgressMeter(start, progress) if progress else None

        async def embed(part: tuple[str, ...]) -> EmbeddingBatch:
            await self._wait_for_memory()
            return await self.embed_batch(
                part, prompt=prompt, truncation=truncation, on_rows=on_rows
            )

        finish = await self._finisher(dimensions)
        chunks = embed_windows(texts, embed, finish, window=window, start=start)
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    def get_info(self) -> dict[str, Any]:
        """Return facts as plain JSON types; what only loading tells is None before the first."""
        config, spec = self.config, self._spec
        engine = self._engine if self._engine and self._engine.is_open else None
        return {
            "model_name": config.model_name,
            "backend": config.backend.value,
            "loaded": engine is not None,
            "device": spec.device if spec else config.device,
            "device_reason": spec and spec.device_reason,
            "embedding_dimension": spec and spec.dimension,
            "max_length": spec.max_length if spec else config.max_length,
            "pooling": spec.pooling if spec else config.pooling,
            "dtype": spec.dtype if spec else config.dtype,
            "normalize": config.normalize,
            "dimensions": config.dimensions or (spec and spec.dimensions),
            "batch_size": engine.limits.max_rows if engine else config.batch_size,
            "max_batch_tokens": engine.limits.budget.limit if engine else config.max_batch_tokens,
            "batch_tokens_now": engine and engine.limits.budget.current,
            "workers": engine.workers if engine else self._workers,
            "batch_invariant": spec and spec.batch_invariant,
            "prompts": dict(spec.prompts) if spec else None,
            "fingerprint": spec and spec.fingerprint,
            "model_path": spec and spec.model_path,
            "source": spec and spec.source,
            "circuit_breaker": self._breaker.snapshot(),
            "bulkhead": self._bulkhead.snapshot(),
            "memory": self._governor.snapshot(),
        }

    async def _infer(self, call: EmbedCall) -> EmbeddingBatch:
        engine = await self._current()
        with engine.lease():
            await self._open(engine)
            return await Inference(engine, call).run()

    async def _finisher(self, dimensions: int | None) -> Callable[[Vectors], Vectors]:
        """Return what makes the caller's vectors of the model's; refuse what it cannot make."""
        spec = await self._loaded()
        if (wanted := dimensions) is None:
            wanted = self.config.dimensions or spec.dimensions
        scaled = normalized if self.config.normalize else _unchanged
        if wanted is None:
            return scaled
        check_dimensions(wanted, spec.dimension)
        return lambda vectors: scaled(shortened(vectors, wanted))

    async def _wait_for_memory(self) -> None:
        deadline = self._clock.now() + _MEMORY_PATIENCE
        while True:
            try:
                return self._governor.admit_bulk(device=(await self._loaded()).device)
            except MemoryPressureError as exc:
                if self._clock.now() >= deadline:
                    raise
                # Bulk work may be all that there is: then nobody else calls for relief.
                await asyncio.to_thread(self._governor.check)
                await self._clock.sleep(exc.retry_after or _MEMORY_PAUSE)

    async def _prompt(self, name: str) -> str:
        prompts = (await self._loaded()).prompts
        if name not in prompts:
            raise ConfigurationError(
                f"{self.config.model_name} has no prompt {name!r}, but {sorted(prompts)}"
            )
        return prompts[name]

    async def _loaded(self) -> BackendSpec:
        return self._spec or await self._open(await self._current())

    async def _current(self) -> Engine:
        """Return an engine that takes calls; it may still be opening."""
        while (engine := self._engine) and engine.retired:
            await engine.closed()
            self._forget(engine)
        if engine is None:
            config, governor = self.config, self._governor
            engine = self._engine = Engine(
                lambda: self._backend_factory(config),
                lambda spec: limits_of(config, spec, governor),
                config.model_name,
                self._workers,
            )
        return engine

    async def _open(self, engine: Engine) -> BackendSpec:
        try:
            self._spec = spec = await engine.opened()
        except ServiceError:
            # Forgotten at once, so that the next call tries again.
            engine.retire()
            self._forget(engine)
            raise
        return spec

    def _forget(self, engine: Engine) -> None:
        if self._engine is engine:
            self._engine = None


def _unchanged(vectors: Vectors) -> Vectors:
    return vectors


def _ignore(_: EmbeddedRows) -> None:
    """Nobody wants to hear of single passes."""
