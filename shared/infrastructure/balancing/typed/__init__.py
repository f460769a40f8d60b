"""Typed calls: chat, streams that recover, embeddings, models, and how each answer came about."""

from shared.infrastructure.balancing.typed.chat import chat
from shared.infrastructure.balancing.typed.embeddings import embeddings, models
from shared.infrastructure.balancing.typed.expect import Expected
from shared.infrastructure.balancing.typed.reader import Pause, Piece, Recovery
from shared.infrastructure.balancing.typed.requests import (
    Exchange,
    chat_payload,
    embeddings_payload,
)
from shared.infrastructure.balancing.typed.route import joined_route, route_info
from shared.infrastructure.balancing.typed.stream import ChatStream

__all__ = [
    # chat.py
    "chat",
    # embeddings.py
    "embeddings",
    "models",
    # expect.py
    "Expected",
    # reader.py
    "Pause",
    "Piece",
    "Recovery",
    # requests.py
    "Exchange",
    "chat_payload",
    "embeddings_payload",
    # route.py
    "joined_route",
    "route_info",
    # stream.py
    "ChatStream",
]
