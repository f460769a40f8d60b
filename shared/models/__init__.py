"""What goes in and comes out of the services, as pydantic models."""

from shared.models.embedding import EmbeddingResult
from shared.models.llm import LLMChunk, LLMRequest, LLMResponse, Usage

__all__ = [
    # embedding.py
    "EmbeddingResult",
    # llm.py
    "LLMChunk",
    "LLMRequest",
    "LLMResponse",
    "Usage",
]
