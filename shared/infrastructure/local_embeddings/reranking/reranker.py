"""A local reranker: a cross-encoder under the layers of a local model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig, ModelBackend
from shared.infrastructure.local_embeddings.errors import InvalidTextError
from shared.infrastructure.local_embeddings.model import BackendFactory, LocalEmbeddingModel
from shared.infrastructure.local_embeddings.reranking.backend import open_cross_encoder
from shared.infrastructure.local_embeddings.reranking.config import RerankerConfig
from shared.infrastructure.resilience.clock import MONOTONIC, Clock


class LocalReranker:
    """A cross-encoder in this process, in ONNX Runtime, on threads of its own.

    It is a local model whose texts are read with a query before them, and whose vectors have one
    number, so that all that protects and bounds such a model does the same for this one.

    ::

        async with LocalReranker(RerankerConfig(model_name="BAAI/bge-reranker-base")) as reranker:
            scores = await reranker.rank("how tall is it?", ["It is 8,848 m high.", "It is old."])

    Args:
        config: What to load and how to run it.
        clock: Source of monotonic time.
        backend_factory: Loads the model, on its thread; given to run a scripted one in a test.
    """

    def __init__(
        self,
        config: RerankerConfig,
        *,
        clock: Clock = MONOTONIC,
        backend_factory: BackendFactory = open_cross_encoder,
    ) -> None:
        self.config = config
        # As it was given: a number of rows that nobody set is no bound on a GPU.
        given = config.model_dump(exclude_unset=True)
        options = LocalEmbeddingConfig.model_validate(
            given | {"backend": ModelBackend.ONNX, "max_queue": config.max_queue}
        )
        self._model = LocalEmbeddingModel(options, clock=clock, backend_factory=backend_factory)

    async def __aenter__(self) -> Self:
        await self.load()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.unload()

    async def load(self) -> None:
        """Load the model unless it is loaded.

        Raises:
            UnsupportedModelError: It is no cross-encoder with one score a pair.
            ServiceError: As `LocalEmbeddingModel.load` does.
        """
        await self._model.load()

    async def unload(self) -> None:
        """Wait for running calls, then give the model's memory back; do nothing if unloaded."""
        await self._model.unload()

    async def rank(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return how well each text fits the query, float32 of shape (n,); more is better.

        Scores are what the model's files make of its answers: from 0 to 1 unless they say that
        they are left as they are. What is too long is cut, the longer of the two first.

        Raises:
            InvalidTextError: The query or an item is no text.
            InferenceError: The model failed; `indexes` says for which texts.
            BulkheadFullError: More calls wait than `config.max_queue`.
            CircuitOpenError: The model failed time after time, and is given a rest.
        """
        batch = await self._model.embed_batch(texts, prompt=as_query(query))
        if error := batch.error():
            raise error
        scores: NDArray[np.float32] = batch.vectors[:, 0]
        return scores

    def get_info(self) -> dict[str, Any]:
        """Return facts as plain JSON types, as `LocalEmbeddingModel.get_info` does."""
        info = self._model.get_info()
        about_vectors = ("embedding_dimension", "pooling", "normalize", "dimensions", "backend")
        about_prompts = ("prompts", "default_prompt")
        return {
            name: fact
            for name, fact in info.items()
            if name not in (*about_vectors, *about_prompts)
        }


def as_query(query: str) -> str:
    """Return the query as it is.

    Raises:
        InvalidTextError: It is no string.
    """
    given = cast("object", query)  # callers without a type checker pass anything
    if not isinstance(given, str):
        raise InvalidTextError(f"the query must be a string, not {type(given).__name__}")
    return given
