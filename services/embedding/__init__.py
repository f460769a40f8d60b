"""The embedding service: a cached, batching client of local models and remote servers."""

from services.embedding.backends import Backend, LocalBackend
from services.embedding.cache import Embedded, EmbeddingCache
from services.embedding.errors import (
    InvalidDimensionsError,
    InvalidReplyError,
    QueueFullError,
    RemoteBusyError,
    ServiceStoppedError,
    TextRejectedError,
)
from services.embedding.remote import RemoteBackend
from services.embedding.service import Embeddings, ProductionEmbeddingService
from services.embedding.settings import EmbeddingSettings

__all__ = [
    # settings.py, service.py
    "EmbeddingSettings",
    "Embeddings",
    "ProductionEmbeddingService",
    # backends.py, remote.py
    "Backend",
    "LocalBackend",
    "RemoteBackend",
    # cache.py
    "Embedded",
    "EmbeddingCache",
    # errors.py
    "InvalidDimensionsError",
    "InvalidReplyError",
    "QueueFullError",
    "RemoteBusyError",
    "ServiceStoppedError",
    "TextRejectedError",
]
