"""The APIs that LLM hosts speak, and which of them a path belongs to."""

from __future__ import annotations

from shared.infrastructure.balancing.dialects.anthropic import AnthropicMessages
from shared.infrastructure.balancing.dialects.openai import (
    OpenAIChat,
    OpenAICompletions,
    OpenAIEmbeddings,
)
from shared.infrastructure.balancing.dialects.protocol import Dialect, Event
from shared.infrastructure.balancing.dialects.responses import OpenAIResponses

__all__ = [
    # anthropic.py
    "AnthropicMessages",
    # protocol.py
    "Dialect",
    "Event",
    # openai.py
    "OpenAIChat",
    "OpenAICompletions",
    "OpenAIEmbeddings",
    # responses.py
    "OpenAIResponses",
    # here
    "dialect_of",
]

_CHAT: Dialect = OpenAIChat()
_BY_END: dict[str, Dialect] = {
    "completions": OpenAICompletions(),
    "embeddings": OpenAIEmbeddings(),
    "responses": OpenAIResponses(),
    "messages": AnthropicMessages(),
}


def dialect_of(path: str) -> Dialect | None:
    """Return the dialect that is spoken at the end of a path, without its query; None if none."""
    before, _, end = path.rstrip("/").rpartition("/")
    dialect = _BY_END.get(end)
    if end == "completions" and before.endswith("/chat"):
        return _CHAT
    if end == "messages" and "/threads/" in before:  # a list, and no answer
        return None
    return dialect
