"""What a client is told of an error: the right status, what to do, and nothing of our insides."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from services.embedding.errors import (
    InvalidDimensionsError,
    RemoteBusyError,
    TextRejectedError,
)
from services.embedding.wire import Header, HTTPError
from shared.infrastructure.http import UpstreamError
from shared.infrastructure.local_embeddings import InvalidTextError
from shared.infrastructure.resilience import (
    BulkheadFullError,
    CallRefusedError,
    DeadlineExceededError,
    RateLimitExceededError,
    ServiceError,
)

_log = logging.getLogger(__name__)

_DEFAULT_RETRY_AFTER = 1.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """How errors of some classes are answered.

    Attributes:
        errors: The classes.
        status: HTTP status.
        message: What the client is told; None tells it the error's own message.
        kind: OpenAI's `type`.
        param: Field of the request that is to blame.
    """

    errors: tuple[type[ServiceError], ...]
    status: int
    message: str | None = None
    kind: str = "server_error"
    param: str | None = None


_INVALID = "invalid_request_error"

# The first that matches counts.
_ANSWERS = (
    _Answer((InvalidTextError,), 400, kind=_INVALID, param="input"),
    _Answer((InvalidDimensionsError,), 422, kind=_INVALID, param="dimensions"),
    _Answer((TextRejectedError,), 422, kind=_INVALID, param="input"),
    _Answer(
        (BulkheadFullError, RateLimitExceededError),
        429,
        "too many texts are waiting: come back later",
        "rate_limit_error",
    ),
    _Answer((CallRefusedError, RemoteBusyError), 503, "the model cannot be asked now"),
    _Answer((DeadlineExceededError,), 504, "the time for this request is over"),
    _Answer((UpstreamError,), 502, "the remote server failed"),
    _Answer((ServiceError,), 500, "the request failed"),
)


def problem(error: Exception) -> HTTPError:
    """Return the answer to a request that ended in `error`."""
    if isinstance(error, HTTPError):
        return error
    if not isinstance(error, ServiceError):
        _log.error("request failed", exc_info=error)
        return HTTPError(500, "the request failed", kind="server_error", code="internal_error")
    answer = next(answer for answer in _ANSWERS if isinstance(error, answer.errors))
    if answer.status in {500, 502}:
        _log.error("request failed: %s", error)
    return HTTPError(
        answer.status,
        answer.message or str(error),
        kind=answer.kind,
        code=error.code,
        param=answer.param,
        headers=retry_after(error.retry_after) if answer.status in {429, 503} else (),
    )


def retry_after(seconds: float | None) -> list[Header]:
    """Return the headers that ask a client to come back after `seconds`."""
    seconds = _DEFAULT_RETRY_AFTER if seconds is None else seconds
    # The standard header knows whole seconds only; OpenAI's clients and ours read the other one.
    return [
        (b"retry-after", str(math.ceil(seconds)).encode()),
        (b"retry-after-ms", str(math.ceil(seconds * 1000)).encode()),
    ]
