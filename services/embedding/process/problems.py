"""What a client is told of an error: the right status, what to do, and nothing of our insides."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from services.embedding.errors import (
    InvalidDimensionsError,
    NotOfferedError,
    RemoteBusyError,
    TextRejectedError,
    TooManyTokensError,
    UnknownPromptError,
)
from services.embedding.process.messages import Header, HTTPError
from shared.infrastructure.http import UpstreamError
from shared.infrastructure.local_embeddings import (
    InvalidTextError,
    MemoryPressureError,
    TextTooLongError,
)
from shared.infrastructure.resilience import (
    BulkheadFullError,
    CallRefusedError,
    DeadlineExceededError,
    RateLimitExceededError,
    ServiceError,
)

_log = logging.getLogger(__name__)

_DEFAULT_RETRY_AFTER = 1.0

RETRYABLE = frozenset({429, 503})
"""Statuses that say when to come back."""


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
    _Answer((TextTooLongError, TextRejectedError), 422, kind=_INVALID, param="input"),
    _Answer((InvalidTextError,), 400, kind=_INVALID, param="input"),
    _Answer((InvalidDimensionsError,), 422, kind=_INVALID, param="dimensions"),
    _Answer((UnknownPromptError,), 400, kind=_INVALID, param="prompt_name"),
    _Answer((TooManyTokensError,), 413, kind=_INVALID, param="input"),
    _Answer((NotOfferedError,), 404, kind=_INVALID),
    _Answer(
        (BulkheadFullError, RateLimitExceededError, MemoryPressureError),
        429,
        "too much is waiting: come back later",
        "rate_limit_error",
    ),
    _Answer((CallRefusedError, RemoteBusyError), 503, "the model cannot be asked now"),
    _Answer((DeadlineExceededError,), 504, "the time for this request is over"),
    _Answer((UpstreamError,), 502, "the remote server failed"),
    _Answer((ServiceError,), 500, "the request failed"),
)


def problem(error: Exception, param: str = "input") -> HTTPError:
    """Return the answer to a request that ended in `error`.

    Args:
        error: What was raised.
        param: What the dialect calls the field with the items.
    """
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
        param=_blamed(answer.param, error, param),
        headers=retry_after(error.retry_after) if answer.status in RETRYABLE else (),
    )


def retry_after(seconds: float | None = None) -> list[Header]:
    """Return the headers that ask a client to come back after `seconds`."""
    seconds = _DEFAULT_RETRY_AFTER if seconds is None else seconds
    # The standard header knows whole seconds only; OpenAI's clients and ours read the other one.
    return [
        (b"retry-after", str(math.ceil(seconds)).encode()),
        (b"retry-after-ms", str(math.ceil(seconds * 1000)).encode()),
    ]


def not_ready(message: str = "the model is not loaded yet", code: str = "not_ready") -> HTTPError:
    """Return the answer of a process that cannot serve now."""
    return HTTPError(503, message, kind="server_error", code=code, headers=retry_after())


def _blamed(param: str | None, error: ServiceError, items: str) -> str | None:
    if param != "input":
        return param
    index = getattr(error, "index", None)
    return items if index is None else f"{items}[{index}]"
