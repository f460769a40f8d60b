"""Several copies of one model, for calls that must not wait for each other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Self

from shared.infrastructure.local_embeddings.backends import open_backend
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.devices import usable_cpus
from shared.infrastructure.local_embeddings.inference import EmbeddingBatch, as_texts
from shared.infrastructure.local_embeddings.model import BackendFactory, LocalEmbeddingModel
from shared.infrastructure.local_embeddings.vectors import Vectors, normalized
from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import ConfigurationError


class LocalEmbeddingPool:
    """Copies of a model that share its calls; a call goes whole to the least loaded copy.

    Each copy has its own thread and its own weights in memory. Unless the configuration says how
    many CPU threads a copy uses, they share out the CPUs of the process.

    Args:
        config: What each copy loads.
        size: Copies; 2; at least 1.
        clock: Source of monotonic time.
        backend_factory: Loads a copy; as in `LocalEmbeddingModel`.
    """

    def __init__(
        self,
        config: LocalEmbeddingConfig | None = None,
        size: int = 2,
        *,
        clock: Clock = MONOTONIC,
        backend_factory: BackendFactory = open_backend,
    ) -> None:
        if size < 1:
            raise ConfigurationError(f"a pool needs at least 1 model, not {size}")
        config = config or LocalEmbeddingConfig()
        if config.threads is None:
            config = config.model_copy(update={"threads": max(1, usable_cpus() // size)})
        self.config = config
        self._models = [
            LocalEmbeddingModel(config, clock=clock, backend_factory=backend_factory)
            for _ in range(size)
        ]
        self._work = [0] * size

    async def __aenter__(self) -> Self:
        await self.load()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.unload()

    async def load(self) -> None:
        """Load every copy; if one fails, unload the others and raise its error.

        Raises:
            ServiceError: As `LocalEmbeddingModel.load` does.
        """
        outcomes = await asyncio.gather(
            *(model.load() for model in self._models), return_exceptions=True
        )
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if errors:
            await self.unload()
            raise errors[0]

    async def unload(self) -> None:
        """Wait for running calls, then give the memory of every copy back."""
        await asyncio.gather(*(model.unload() for model in self._models))

    async def embed(self, texts: Sequence[str] | str) -> Vectors:
        """Return one vector a text, float32 of shape (n, dimension), in the order of the texts.

        Raises:
            ServiceError: As `LocalEmbeddingModel.embed` does.
        """
        vectors = (await self.embed_batch(texts)).vectors
        return normalized(vectors) if self.config.normalize else vectors

    async def embed_batch(self, texts: Sequence[str] | str) -> EmbeddingBatch:
        """Return vectors that are not normalised, with the token count of each text.

        Raises:
            ServiceError: As `LocalEmbeddingModel.embed` does.
        """
        texts = as_texts(texts)
        # Characters foretell the work of a call; one more a text, since none is free.
        work = len(texts) + sum(map(len, texts))
        copy = min(range(len(self._models)), key=self._work.__getitem__)
        self._work[copy] += work
        try:
            return await self._models[copy].embed_batch(texts)
        finally:
            self._work[copy] -= work

    def get_info(self) -> dict[str, Any]:
        """Return the facts all copies share, `loaded` if every one is, and each under `models`."""
        models = [model.get_info() for model in self._models]
        return {
            **models[0],
            "loaded": all(info["loaded"] for info in models),
            "size": len(models),
            "models": models,
        }
