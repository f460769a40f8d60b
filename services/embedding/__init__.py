"""The embedding service: a cached, batching client of local models and remote servers."""

from services.embedding.backends import (
    Backend,
    BackendFacts,
    FallbackBackend,
    LocalBackend,
    Prepared,
    RemoteBackend,
)
from services.embedding.errors import (
    InvalidDimensionsError,
    InvalidReplyError,
    NotOfferedError,
    QueueFullError,
    RemoteBusyError,
    ServiceStoppedError,
    TextRejectedError,
    TooManyTokensError,
    UnknownPromptError,
)
from services.embedding.options import CacheUse, EmbedOptions, Lane
from services.embedding.outcome import Embedded
from services.embedding.results import Embeddings
from services.embedding.service import ProductionEmbeddingService
from services.embedding.settings import EmbeddingSettings
from services.embedding.similarity import similarity, top_k
from services.embedding.sync import SyncEmbeddingService

__all__ = [
    # settings.py, service.py, sync.py
    "EmbeddingSettings",
    "ProductionEmbeddingService",
    "SyncEmbeddingService",
    # options.py, results.py, outcome.py, similarity.py
    "CacheUse",
    "EmbedOptions",
    "Embedded",
    "Embeddings",
    "Lane",
    "similarity",
    "top_k",
    # backends
    "Backend",
    "BackendFacts",
    "FallbackBackend",
    "LocalBackend",
    "Prepared",
    "RemoteBackend",
    # errors.py
    "InvalidDimensionsError",
    "InvalidReplyError",
    "NotOfferedError",
    "QueueFullError",
    "RemoteBusyError",
    "ServiceStoppedError",
    "TextRejectedError",
    "TooManyTokensError",
    "UnknownPromptError",
]
