"""What is an answer and what is none: events, time limits, and the guard on top of the wire."""

from shared.infrastructure.balancing.answers.exchange import STREAM
from shared.infrastructure.balancing.answers.guard import MAY_RESTART, TYPED, AnswerGuard
from shared.infrastructure.balancing.answers.sse import MAX_EVENT_BYTES, ServerEvent, SSEParser
from shared.infrastructure.balancing.answers.stream import CheckedStream

__all__ = [
    # exchange.py
    "STREAM",
    # guard.py
    "MAY_RESTART",
    "TYPED",
    "AnswerGuard",
    # sse.py
    "MAX_EVENT_BYTES",
    "SSEParser",
    "ServerEvent",
    # stream.py
    "CheckedStream",
]
