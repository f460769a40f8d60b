"""One file per library that runs a model, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable

from shared.infrastructure.local_embeddings.backends.fastembed import FastembedBackend
from shared.infrastructure.local_embeddings.backends.onnx import OnnxBackend
from shared.infrastructure.local_embeddings.backends.protocol import (
    BackendSpec,
    Cost,
    EmbeddingBackend,
)
from shared.infrastructure.local_embeddings.backends.sentence_transformers import (
    SentenceTransformersBackend,
)
from shared.infrastructure.local_embeddings.backends.transformers import TransformersBackend
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig, ModelBackend
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.model_files.integrity import check_manifest
from shared.infrastructure.local_embeddings.model_files.resolve import resolve
from shared.infrastructure.local_embeddings.optional import ensure_installed

__all__ = ["BackendSpec", "Cost", "EmbeddingBackend", "open_backend"]

_BACKENDS: dict[ModelBackend, Callable[[LocalEmbeddingConfig, ModelFiles], EmbeddingBackend]] = {
    ModelBackend.SENTENCE_TRANSFORMERS: SentenceTransformersBackend,
    ModelBackend.TRANSFORMERS: TransformersBackend,
    ModelBackend.ONNX: OnnxBackend,
    ModelBackend.FASTEMBED: FastembedBackend,
}

# Library and extra of each, asked for before a model is looked for, or even downloaded.
_LIBRARIES = {
    ModelBackend.SENTENCE_TRANSFORMERS: ("sentence_transformers", "torch"),
    ModelBackend.TRANSFORMERS: ("transformers", "torch"),
    ModelBackend.ONNX: ("onnxruntime", "onnx"),
    ModelBackend.FASTEMBED: ("fastembed", "fastembed"),
}


def open_backend(config: LocalEmbeddingConfig) -> EmbeddingBackend:
    """Find the model, and load it with the library the config names; takes seconds.

    Raises:
        ModelNotFoundError: Nothing has the model.
        ModelOutsideRootError: The model is not in `config.model_root`.
        ModelIntegrityError: Its files are not those of `config.manifest`.
        UnsupportedModelError: The library cannot run it.
        DeviceUnavailableError: The device is not there.
        MissingExtraError: The library is not installed.
    """
    library, extra = _LIBRARIES[config.backend]
    ensure_installed(library, extra=extra)
    found = resolve(config.model_name, config.model_root)
    if config.manifest:
        check_manifest(found.path, config.manifest)
    return _BACKENDS[config.backend](config, ModelFiles(found.path, found.source))
