"""Errors of the embedding service.

::

    ConfigurationError
    ├── InvalidTextError            an item to embed is no text (of `local_embeddings`)
    ├── InvalidDimensionsError      more, or fewer, dimensions than the model can give
    ├── UnknownPromptError          the model has no prompt of that name
    ├── TooManyTokensError          more tokens in one request than are allowed
    ├── InvalidVectorsError         vectors that cannot be compared
    ├── NotOfferedError             this backend cannot do that at all
    └── VectorSpaceError            a fallback whose vectors are not those of what it stands in for
    CallRefusedError
    ├── BulkheadFullError
    │   └── QueueFullError          too many texts are waiting; `retry_after` says when to come back
    └── ServiceStoppedError         the service is stopping or has been stopped
        └── ServiceForkedError      it was started before this process was forked
    ServiceError
    ├── TextRejectedError           the model cannot embed this text, though it is well
    │   └── RequestTooLargeError    the remote server takes no request of that size
    └── UpstreamError
        ├── RemoteBusyError         the remote server asks for patience
        ├── InvalidReplyError       what the remote server answered is no embedding of our texts
        └── ModelChangedError       it answers with another model than it did when we started
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


class UnknownPromptError(ConfigurationError):
    """The model has no prompt of that name; the message says which it has."""

    code = "unknown_prompt"


class TooManyTokensError(ConfigurationError):
    """One request has more tokens than are allowed; send the texts in several."""

    code = "too_many_tokens"


class NotOfferedError(ConfigurationError):
    """What was asked for is nothing this backend can do: a remote model's token ids, say."""

    code = "not_offered"


class InvalidVectorsError(ConfigurationError):
    """Vectors whose shapes do not fit each other, or whose numbers are not finite."""

    code = "invalid_vectors"


class QueueFullError(BulkheadFullError):
    """Too many texts are waiting for the model."""

    code = "queue_full"


class ServiceStoppedError(CallRefusedError):
    """The service is stopping or has been stopped; `start` it to use it again."""

    code = "service_stopped"


class ServiceForkedError(ServiceStoppedError):
    """The service was started before this process was forked, and its threads stayed behind."""

    code = "service_forked"


class TextRejectedError(ServiceError):
    """The model cannot embed this text; others, at the same time, it can.

    Attributes:
        index: Position of the text among those of the call, if known.
    """

    code = "text_rejected"

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class RequestTooLargeError(TextRejectedError):
    """The remote server takes no request of that size (413); if there is one text, that is it."""

    code = "request_too_large"


class RemoteBusyError(UpstreamError):
    """The remote server kept asking for patience (429)."""

    code = "remote_busy"


class InvalidReplyError(UpstreamError):
    """The remote server answered something that is no embedding of our texts."""

    code = "invalid_reply"


class ModelChangedError(UpstreamError):
    """The remote server answers with another model, or fingerprint, than it did at the start.

    Its vectors do not go with those there are; start the service anew to take it for what it is.
    """

    code = "model_changed"
    is_final = True


class VectorSpaceError(ConfigurationError):
    """A fallback makes other vectors than the backend it would stand in for."""

    code = "vector_space"
