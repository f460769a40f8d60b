"""What the service embeds with: a model in this process, or a server elsewhere."""

from services.embedding.backends.local import LocalBackend
from services.embedding.backends.protocol import Backend, BackendFacts, Prepared
from services.embedding.backends.remote import FallbackBackend, RemoteBackend

__all__ = [
    "Backend",
    "BackendFacts",
    "FallbackBackend",
    "LocalBackend",
    "Prepared",
    "RemoteBackend",
]
