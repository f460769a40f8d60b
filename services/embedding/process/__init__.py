"""The embedding process: what the service can do, over HTTP."""

from services.embedding.process.app import EmbeddingApp
from services.embedding.process.server import serve

__all__ = [
    # app.py
    "EmbeddingApp",
    # server.py
    "serve",
]
