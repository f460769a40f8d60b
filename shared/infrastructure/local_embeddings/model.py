"""A local embedding model: the SDK's layers over inference on a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from shared.infrastructure.local_embeddings.backends import (
    BackendSpec,
    EmbeddingBackend,
    open_backend,
)
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.engine import Engine
from shared.infrastructure.local_embeddings.errors import NonFiniteVectorError
from shared.infrastructure.local_embeddings.inference import (
    EmbeddingBatch,
    Inference,
    as_texts,
)
from shared.infrastructure.local_embeddings.vectors import Vectors, normalized
from shared.infrastructure.resilience.bulkhead import Bulkhead, BulkheadConfig, BulkheadLayer
from shared.infrastructure.resilience.circuit_breaker import CircuitBreaker, CircuitBreakerConfig
from shared.infrastructure.resilience.circuit_layers import CircuitBreakerLayer, CircuitGate
from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import ConfigurationError, ServiceError
from shared.infrastructure.resilience.layer import PlainCall, Send, Verdict, stack

BackendFactory = Callable[[LocalEmbeddingConfig], EmbeddingBackend]


class LocalEmbeddingModel:
    """An embedding model in this process.

    All its work is done on one thread that it owns, so that the event loop stays free. Calls take
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
    """

    def __init__(
        self,
        config: LocalEmbeddingConfig | None = None,
        *,
        clock: Clock = MONOTONIC,
        backend_factory: BackendFactory = open_backend,
    ) -> None:
        self.config = config = config or LocalEmbeddingConfig()
        self._clock = clock
        self._backend_factory = backend_factory
        self._engine: Engine | None = None
        self._spec: BackendSpec | None = None
        # No rate rule: who looks for the one bad text in a batch halves it time and again, and half
        # of those calls fail though the model is well.
        rules = CircuitBreakerConfig(failure_rate=None)
        self._breaker = CircuitBreaker(config.model_name, rules, clock=clock)
        self._bulkhead = Bulkhead(
            BulkheadConfig(max_concurrent=config.max_concurrent, max_queue=config.max_queue),
            clock=clock,
        )
        self._send: Send[Sequence[str], EmbeddingBatch] = stack(
            self._infer,
            CircuitGate(self._breaker),
            BulkheadLayer(self._bulkhead),
            CircuitBreakerLayer(self._breaker),
            semantics=_InferenceSemantics(),
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

    async def embed(self, texts: Sequence[str] | str) -> Vectors:
        """Return one vector a text, float32 of shape (n, dimension), in the order of the texts.

        The vectors have length 1 unless `config.normalize` is off; one text may be given as a
        plain string (n = 1), and no texts give shape (0, dimension). The model is loaded if it is
        not, also after an `unload`.

        Raises:
            InvalidTextError: An item is no text.
            InferenceError: The model failed.
            BulkheadFullError: More calls wait than `config.max_queue`.
            CircuitOpenError: The model failed time after time, and is given a rest.
        """
        vectors = (await self.embed_batch(texts)).vectors
        return normalized(vectors) if self.config.normalize else vectors

    async def embed_batch(self, texts: Sequence[str] | str) -> EmbeddingBatch:
        """Return vectors that are not normalised, with the token count of each text.

        Raises:
            ServiceError: As `embed` does.
        """
        return await self._send(as_texts(texts))

    def get_info(self) -> dict[str, Any]:
        """Return facts as plain JSON types; what only loading tells is None before the first."""
        config, spec = self.config, self._spec
        return {
            "model_name": config.model_name,
            "backend": config.backend.value,
            "loaded": self._engine is not None and self._engine.is_open,
            "device": spec.device if spec else config.device,
            "device_reason": spec and spec.device_reason,
            "embedding_dimension": spec and spec.dimension,
            "max_length": spec.max_length if spec else config.max_length,
            "pooling": spec.pooling if spec else config.pooling,
            "dtype": spec.dtype if spec else config.dtype,
            "normalize": config.normalize,
            "batch_size": config.batch_size,
            "max_batch_tokens": config.max_batch_tokens or (spec and spec.batch_tokens),
            "batch_invariant": spec and spec.batch_invariant,
            "prompts": dict(spec.prompts) if spec else None,
            "fingerprint": spec and spec.fingerprint,
            "model_path": spec and spec.model_path,
            "source": spec and spec.source,
            "circuit_breaker": self._breaker.snapshot(),
            "bulkhead": self._bulkhead.snapshot(),
        }

    async def _infer(self, texts: Sequence[str]) -> EmbeddingBatch:
        engine = await self._current()
        with engine.lease():
            await self._open(engine)
            spec = engine.backend.spec
            inference = Inference(
                engine.backend,
                texts,
                max_rows=self.config.batch_size,
                max_tokens=self.config.max_batch_tokens or spec.batch_tokens,
                clock=self._clock,
            )
            while True:
                if result := await engine.run(inference.advance):
                    return result

    async def _current(self) -> Engine:
        """Return an engine that takes calls; it may still be opening."""
        while (engine := self._engine) and engine.retired:
            await engine.closed()
            self._forget(engine)
        if engine is None:
            config = self.config
            engine = Engine(lambda: self._backend_factory(config), config.model_name)
            self._engine = engine
        return engine

    async def _open(self, engine: Engine) -> None:
        try:
            await engine.opened()
        except ServiceError:
            # Forgotten at once, so that the next call tries again.
            engine.retire()
            self._forget(engine)
            raise
        self._spec = engine.spec

    def _forget(self, engine: Engine) -> None:
        if self._engine is engine:
            self._engine = None


class _InferenceSemantics(PlainCall):
    """A text or a setting that is wrong says nothing about the model."""

    def judge(self, outcome: object) -> Verdict:
        if isinstance(outcome, (ConfigurationError, NonFiniteVectorError)):
            return Verdict.VOID
        return super().judge(outcome)
