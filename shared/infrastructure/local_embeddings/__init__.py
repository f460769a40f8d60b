"""Embedding models in this process: four libraries behind one protocol, one thread a model."""

from shared.infrastructure.local_embeddings.backends import (
    BackendSpec,
    EmbeddingBackend,
    open_backend,
)
from shared.infrastructure.local_embeddings.config import (
    LocalEmbeddingConfig,
    ModelBackend,
    Pooling,
)
from shared.infrastructure.local_embeddings.errors import (
    DeviceUnavailableError,
    InferenceError,
    InvalidTextError,
    ModelLoadError,
    ModelNotFoundError,
    NonFiniteVectorError,
    UnsupportedModelError,
)
from shared.infrastructure.local_embeddings.inference import EmbeddingBatch
from shared.infrastructure.local_embeddings.model import LocalEmbeddingModel
from shared.infrastructure.local_embeddings.pool import LocalEmbeddingPool
from shared.infrastructure.local_embeddings.tokens import TokenBatch
from shared.infrastructure.local_embeddings.vectors import normalized

__all__ = [
    # config.py
    "LocalEmbeddingConfig",
    "ModelBackend",
    "Pooling",
    # model.py, pool.py
    "EmbeddingBatch",
    "LocalEmbeddingModel",
    "LocalEmbeddingPool",
    "normalized",
    # backends
    "BackendSpec",
    "EmbeddingBackend",
    "TokenBatch",
    "open_backend",
    # errors.py
    "DeviceUnavailableError",
    "InferenceError",
    "InvalidTextError",
    "ModelLoadError",
    "ModelNotFoundError",
    "NonFiniteVectorError",
    "UnsupportedModelError",
]
