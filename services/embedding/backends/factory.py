"""The backend that the settings describe."""

from __future__ import annotations

from services.embedding.backends.local import local_backend
from services.embedding.backends.protocol import Backend
from services.embedding.backends.remote import RemoteBackend
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.resilience import MONOTONIC, Clock


def configured_backend(settings: EmbeddingSettings, *, clock: Clock = MONOTONIC) -> Backend:
    """Return a backend for a remote server if the settings name one, else for a local model."""
    if settings.remote_url is not None:
        return RemoteBackend(settings, clock=clock)
    return local_backend(settings)
