"""Errors of the embedding service.

::

    ConfigurationError
    ├── InvalidTextError            an item to embed is no text (of `local_embeddings`)
    └── InvalidDimensionsError      more, or fewer, dimensions than the model can give
    CallRefusedError
    ├── BulkheadFullError
    │   └── QueueFullError          too many texts are waiting; `retry_after` says when to come back
    └── ServiceStoppedError         the service is stopping or has been stopped
    ServiceError
    ├── TextRejectedError           the model cannot embed this text, though it is well
    └── UpstreamError
        ├── RemoteBusyError         the remote server asks for patience
        └── InvalidReplyError       what the remote server answered is no embedding of our texts
"""

from __future__ import annotations

from shared.infrastructure.http import UpstreamError
from shared.infrastructure.resilience import (
    BulkheadFullError,
    CallRefusedError,
    ConfigurationError,
    ServiceError,
)


class InvalidDimensionsError(ConfigurationError):
    """The number of dimensions asked for is below 1 or above the model's own."""

    code = "invalid_dimensions"


class QueueFullError(BulkheadFullError):
    """Too many texts are waiting for the model."""

    code = "queue_full"


class ServiceStoppedError(CallRefusedError):
    """The service is stopping or has been stopped; `start` it to use it again."""

    code = "service_stopped"


class TextRejectedError(ServiceError):
    """The model cannot embed this text; others, at the same time, it can.

    Attributes:
        index: Position of the text among those of the call, if known.
    """

    code = "text_rejected"

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class RemoteBusyError(UpstreamError):
    """The remote server kept asking for patience (429)."""

    code = "remote_busy"


class InvalidReplyError(UpstreamError):
    """The remote server answered something that is no embedding of our texts."""

    code = "invalid_reply"
