"""What goes in and comes out of the services, as pydantic models."""

from shared.models.chat import (
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    Choice,
    FunctionCall,
    ToolCall,
)
from shared.models.embedding import EmbeddingResult
from shared.models.embeddings import (
    Embedding,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    ModelInfo,
    ModelList,
)
from shared.models.llm import LLMChunk, LLMRequest, LLMResponse
from shared.models.route import AttemptInfo, Route, RouteInfo
from shared.models.stream import (
    ChatCompletionChunk,
    ChunkChoice,
    Delta,
    StreamRestarted,
    ToolCallDelta,
)
from shared.models.usage import CompletionTokensDetails, PromptTokensDetails, Usage

__all__ = [
    # chat.py
    "ChatCompletion",
    "ChatMessage",
    "ChatRequest",
    "Choice",
    "FunctionCall",
    "ToolCall",
    # embedding.py
    "EmbeddingResult",
    # embeddings.py
    "Embedding",
    "EmbeddingsAnswer",
    "EmbeddingsRequest",
    "ModelInfo",
    "ModelList",
    # llm.py
    "LLMChunk",
    "LLMRequest",
    "LLMResponse",
    # route.py
    "AttemptInfo",
    "Route",
    "RouteInfo",
    # stream.py
    "ChatCompletionChunk",
    "ChunkChoice",
    "Delta",
    "StreamRestarted",
    "ToolCallDelta",
    # usage.py
    "CompletionTokensDetails",
    "PromptTokensDetails",
    "Usage",
]
