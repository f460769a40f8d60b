"""Cross-encoders: models that read a query and a text together, and say how well they fit."""

from shared.infrastructure.local_embeddings.reranking.config import RerankerConfig
from shared.infrastructure.local_embeddings.reranking.reranker import LocalReranker

__all__ = ["LocalReranker", "RerankerConfig"]
