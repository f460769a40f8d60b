"""A local embedding model: the SDK's layers over inference on threads of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from typing import Any, Self

from shared.infrastructure.local_embeddings import tokenizing
from shared.infrastructure.local_embeddings.backends import EmbeddingBackend, open_backend
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
from shared.infrastructure.local_embeddings.engines import Engines
from shared.infrastructure.local_embeddings.errors import InvalidTextError
from shared.infrastructure.local_embeddings.inference import (
    EmbedCall,
    EmbeddingBatch,
    Inference,
    InferenceSemantics,
    as_texts,
)
from shared.infrastructure.local_embeddings.limits import limits_of
from shared.infrastructure.local_embeddings.memory.governor import MemoryGovernor
from shared.infrastructure.local_embeddings.memory.patience import wait_for_memory
from shared.infrastructure.local_embeddings.model_files.prompts import prompt_for
from shared.infrastructure.local_embeddings.model_info import finisher, model_info
from shared.infrastructure.local_embeddings.passes import EmbeddedRows
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.local_embeddings.vectors import Vectors
from shared.infrastructure.resilience.bulkhead import Bulkhead, BulkheadConfig, BulkheadLayer
from shared.infrastructure.resilience.circuit_breaker import CircuitBreaker, CircuitBreakerConfig
from shared.infrastructure.resilience.circuit_layers import CircuitBreakerLayer, CircuitGate
from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import ConfigurationError
from shared.infrastructure.resilience.layer import Send, stack

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
        self._engines = Engines(self._engine)
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
        await self._engines.open(await self._engines.current())

    async def unload(self) -> None:
        """Wait for running calls, then give the model's memory back; do nothing if unloaded.

        Calls that begin meanwhile wait, and load the model again.
        """
        await self._engines.close()

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
        finish = finisher(await self._engines.loaded(), self.config, dimensions)
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
        prompt = prompt_for((await self._engines.loaded()).prompts, "query")
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
        prompt = prompt_for((await self._engines.loaded()).prompts, "document")
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

    async def embed_tokens(self, tokens: TokenBatch) -> EmbeddingBatch:
        """Return what `embed_batch` does, of texts that are tokens already.

        Raises:
            InvalidTokensError: The model cannot read them.
            ServiceError: As `embed_batch` does.
        """
        tokenizing.check_tokens(tokens, await self._engines.loaded())
        return await self._send(EmbedCall(tokens))

    async def tokenize(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        truncation: Truncation | None = None,
    ) -> TokenBatch:
        """Return the tokens of texts for `embed_tokens`; arguments are those of `embed`.

        Raises:
            InvalidTextError: As `embed` does.
        """
        texts, options = as_texts(texts), TokenizeOptions(prompt, truncation)
        async with self._leased() as engine:
            return await tokenizing.tokenize(engine, texts, options)

    async def tokenize_each(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        truncation: Truncation | None = None,
    ) -> list[TokenBatch | InvalidTextError]:
        """Return the tokens of each text as a batch of one, or why there are none."""
        texts, options = as_texts(texts), TokenizeOptions(prompt, truncation)
        async with self._leased() as engine:
            return await tokenizing.tokenize_each(engine, texts, options)

    def tokenize_now(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        truncation: Truncation | None = None,
    ) -> TokenBatch | None:
        """Return what `tokenize` would, if it takes some 50 microseconds; else None.

        Raises:
            InvalidTextError: As `embed` does.
        """
        engine = self._engines.ready
        options = TokenizeOptions(prompt, truncation)
        return tokenizing.tokenize_now(engine, texts, options) if engine else None

    def read_tokens(
        self, ids: Sequence[Sequence[int]], *, truncation: Truncation | None = None
    ) -> TokenBatch:
        """Return token ids as they are for `embed_tokens`: no special ones are added to them.

        The model has to be loaded. An id takes some 40 nanoseconds.

        Raises:
            InvalidTokensError: One is none of the model's; or there is none in a row.
            TextTooLongError: A row is too long for `Truncation.NONE`.
        """
        if self._engines.spec is None:
            raise RuntimeError("the model has not been loaded")
        return tokenizing.read_tokens(ids, self._engines.spec, truncation)

    async def count_tokens(
        self, texts: Sequence[str] | str, *, prompt: str | None = None
    ) -> tuple[int, ...]:
        """Return the tokens of each text, prompt and special ones included, before any truncation.

        Raises:
            InvalidTextError: A text cannot be read.
        """
        texts = as_texts(texts)
        async with self._leased() as engine:
            return tuple(await tokenizing.count_tokens(engine, texts, prompt))

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
            device = (await self._engines.loaded()).device
            await wait_for_memory(self._governor, device, self._clock)
            return await self.embed_batch(
                part, prompt=prompt, truncation=truncation, on_rows=on_rows
            )

        finish = finisher(await self._engines.loaded(), self.config, dimensions)
        chunks = embed_windows(texts, embed, finish, window=window, start=start)
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    def get_info(self) -> dict[str, Any]:
        """Return facts as plain JSON types; what only loading tells is None before the first."""
        return model_info(self.config, self._engines, self._workers) | {
            "circuit_breaker": self._breaker.snapshot(),
            "bulkhead": self._bulkhead.snapshot(),
            "memory": self._governor.snapshot(),
        }

    @contextlib.asynccontextmanager
    async def _leased(self) -> AsyncGenerator[Engine]:
        engine = await self._engines.current()
        with engine.lease():
            await self._engines.open(engine)
            yield engine

    async def _infer(self, call: EmbedCall) -> EmbeddingBatch:
        async with self._leased() as engine:
            return await Inference(engine, call).run()

    async def _prompt(self, name: str) -> str:
        prompts = (await self._engines.loaded()).prompts
        if name not in prompts:
            raise ConfigurationError(
                f"{self.config.model_name} has no prompt {name!r}, but {sorted(prompts)}"
            )
        return prompts[name]

    def _engine(self) -> Engine:
        config, governor = self.config, self._governor
        return Engine(
            lambda: self._backend_factory(config),
            lambda spec: limits_of(config, spec, governor),
            config.model_name,
            self._workers,
        )


def _ignore(_: EmbeddedRows) -> None:
    """Nobody wants to hear of single passes."""
