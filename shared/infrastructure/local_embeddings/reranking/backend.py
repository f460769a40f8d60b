"""A cross-encoder as a backend: a pair of texts becomes a vector of one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.backends.onnx import OnnxBackend, Tokenizer
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig, Pooling
from shared.infrastructure.local_embeddings.errors import UnsupportedModelError
from shared.infrastructure.local_embeddings.model_files.integrity import check_manifest
from shared.infrastructure.local_embeddings.model_files.resolve import resolve
from shared.infrastructure.local_embeddings.onnx_encoder.encoder import Linear
from shared.infrastructure.local_embeddings.onnx_encoder.graph import Graph, GraphBuilder
from shared.infrastructure.local_embeddings.optional import ensure_installed
from shared.infrastructure.local_embeddings.reranking.classifier import build_classifier
from shared.infrastructure.local_embeddings.reranking.files import CrossEncoderFiles
from shared.infrastructure.local_embeddings.reranking.pairs import PairTokenizer, untagged
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.local_embeddings.vectors import Vectors


def open_cross_encoder(config: LocalEmbeddingConfig) -> CrossEncoderBackend:
    """Find the model, and load it; takes seconds.

    Raises:
        ServiceError: As `open_backend` does.
    """
    ensure_installed("onnxruntime", extra="onnx")
    found = resolve(config.model_name, config.model_root)
    if config.manifest:
        check_manifest(found.path, config.manifest)
    return CrossEncoderBackend(config, CrossEncoderFiles(found.path, found.source))


class CrossEncoderBackend(OnnxBackend):
    """A cross-encoder in ONNX Runtime; the prompt of a text is the query that it is read with.

    Args:
        config: How to run it.
        files: Model directory.

    Raises:
        UnsupportedModelError: It has no head that gives one score a pair, or one that is unknown.
    """

    def __init__(self, config: LocalEmbeddingConfig, files: CrossEncoderFiles) -> None:
        self._is_sigmoid = files.is_sigmoid
        # Its vector is that of the first token, and a head follows.
        super().__init__(config.model_copy(update={"pooling": Pooling.CLS}), files)
        if self.spec.dimension != 1:
            raise UnsupportedModelError(
                f"{files.root} gives {self.spec.dimension} numbers a pair: a reranker has a "
                "classification head with one label"
            )

    def _open_tokenizer(self) -> Tokenizer:
        return PairTokenizer(self._files, self._config.max_length)

    def _graph(self, linear: Callable[[GraphBuilder], Linear]) -> Graph:
        return build_classifier(self._files, linear)

    def _feeds(self, batch: TokenBatch) -> dict[str, NDArray[Any]]:
        feeds = super()._feeds(batch)
        ids, types = untagged(feeds["input_ids"])
        feeds["input_ids"] = ids
        if "token_type_ids" in feeds:
            feeds["token_type_ids"] = types
        return feeds

    def _run(self, batch: TokenBatch, options: Any = None) -> Vectors:
        scores = super()._run(batch, options)
        if not self._is_sigmoid:
            return scores
        # By way of a function that, unlike an exponential, overflows nowhere.
        scores[:] = (1 + np.tanh(scores / 2)) / 2
        return scores
