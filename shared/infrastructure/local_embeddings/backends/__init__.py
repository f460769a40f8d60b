"""One file per library that runs a model, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable

from shared.infrastructure.local_embeddings.backends.fastembed import FastembedBackend
from shared.infrastructure.local_embeddings.backends.onnx import OnnxBackend
from shared.infrastructure.local_embeddings.backends.protocol import BackendSpec, EmbeddingBackend
from shared.infrastructure.local_embeddings.backends.sentence_transformers import (
    SentenceTransformersBackend,
)
from shared.infrastructure.local_embeddings.backends.transformers import TransformersBackend
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig, ModelBackend
from shared.infrastructure.local_embeddings.files import ModelFiles
from shared.infrastructure.local_embeddings.resolve import resolve

__all__ = ["BackendSpec", "EmbeddingBackend", "open_backend"]

_BACKENDS: dict[ModelBackend, Callable[[LocalEmbeddingConfig, ModelFiles], EmbeddingBackend]] = {
    ModelBackend.SENTENCE_TRANSFORMERS: SentenceTransformersBackend,
    ModelBackend.TRANSFORMERS: TransformersBackend,
    ModelBackend.ONNX: OnnxBackend,
    ModelBackend.FASTEMBED: FastembedBackend,
}


def open_backend(config: LocalEmbeddingConfig) -> EmbeddingBackend:
    """Find the model, and load it with the library the config names; takes seconds.

    Raises:
        ModelNotFoundError: Nothing has the model.
        UnsupportedModelError: The library cannot run it.
        DeviceUnavailableError: The device is not there.
        MissingExtraError: The library is not installed.
    """
    found = resolve(config.model_name)
    return _BACKENDS[config.backend](config, ModelFiles(found.path, found.source))
