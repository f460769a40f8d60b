"""A server elsewhere as a backend, by OpenAI's API, TEI's or Cohere's."""

from services.embedding.backends.remote.backend import RemoteBackend
from services.embedding.backends.remote.corpus import EmbeddedCorpus
from services.embedding.backends.remote.fallback import FallbackBackend

__all__ = ["EmbeddedCorpus", "FallbackBackend", "RemoteBackend"]
