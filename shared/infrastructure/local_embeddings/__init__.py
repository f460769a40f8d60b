"""Embedding models in this process: four libraries behind one protocol, on threads of their own.

Each part is imported when one of its names is first asked for: `torch_encoder` runs where torch and
numpy are all there is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.infrastructure.local_embeddings.backends import (
        BackendSpec,
        Cost,
        EmbeddingBackend,
        open_backend,
    )
    from shared.infrastructure.local_embeddings.config import (
        LocalEmbeddingConfig,
        ModelBackend,
        Pooling,
        TokenizeOptions,
        Truncation,
    )
    from shared.infrastructure.local_embeddings.corpus import EmbeddedChunk, Progress
    from shared.infrastructure.local_embeddings.corpus_file import embed_file
    from shared.infrastructure.local_embeddings.errors import (
        DeviceUnavailableError,
        InferenceError,
        InvalidTextError,
        InvalidTokensError,
        MemoryPressureError,
        ModelIntegrityError,
        ModelLoadError,
        ModelNotFoundError,
        ModelOutsideRootError,
        NonFiniteVectorError,
        OutOfMemoryError,
        TextTooLongError,
        UnsupportedModelError,
        WorkerCrashedError,
    )
    from shared.infrastructure.local_embeddings.inference import EmbeddingBatch
    from shared.infrastructure.local_embeddings.memory.governor import (
        MemoryConfig,
        MemoryGovernor,
        Stage,
    )
    from shared.infrastructure.local_embeddings.model import LocalEmbeddingModel
    from shared.infrastructure.local_embeddings.model_cache import ModelCache
    from shared.infrastructure.local_embeddings.passes import EmbeddedRows
    from shared.infrastructure.local_embeddings.pool import LocalEmbeddingPool
    from shared.infrastructure.local_embeddings.reranking import LocalReranker, RerankerConfig
    from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
    from shared.infrastructure.local_embeddings.vectors import normalized, shortened

__all__ = [
    # config.py
    "LocalEmbeddingConfig",
    "ModelBackend",
    "Pooling",
    "TokenizeOptions",
    "Truncation",
    # model.py, pool.py, reranking
    "EmbeddedChunk",
    "EmbeddedRows",
    "EmbeddingBatch",
    "LocalEmbeddingModel",
    "LocalEmbeddingPool",
    "LocalReranker",
    "Progress",
    "RerankerConfig",
    "embed_file",
    "normalized",
    "shortened",
    # memory, model_cache.py
    "MemoryConfig",
    "MemoryGovernor",
    "ModelCache",
    "Stage",
    # backends
    "BackendSpec",
    "Cost",
    "EmbeddingBackend",
    "TokenBatch",
    "open_backend",
    # errors.py
    "DeviceUnavailableError",
    "InferenceError",
    "InvalidTextError",
    "InvalidTokensError",
    "MemoryPressureError",
    "ModelIntegrityError",
    "ModelLoadError",
    "ModelNotFoundError",
    "ModelOutsideRootError",
    "NonFiniteVectorError",
    "OutOfMemoryError",
    "TextTooLongError",
    "UnsupportedModelError",
    "WorkerCrashedError",
]

# Lightest first.
_PARTS = (
    "tokens.token_batch",
    "config",
    "errors",
    "vectors",
    "backends",
    "corpus",
    "inference",
    "memory.governor",
    "model",
    "model_cache",
    "passes",
    "pool",
    "corpus_file",
    "reranking",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for part in _PARTS:
            module = importlib.import_module(f"{__name__}.{part}")
            if hasattr(module, name):
                value = globals()[name] = getattr(module, name)
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
