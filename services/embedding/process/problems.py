"""How the errors of the embedding service are answered."""

from __future__ import annotations

from services.embedding.errors import (
    InvalidDimensionsError,
    NotOfferedError,
    RemoteBusyError,
    TextRejectedError,
    TooManyTokensError,
    UnknownPromptError,
)
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
from shared.infrastructure.server import HTTPError, Problem, Problems
from shared.infrastructure.server import not_ready as _not_ready

_INVALID = "invalid_request_error"

PROBLEMS = Problems(
    Problem((TextTooLongError, TextRejectedError), 422, kind=_INVALID, param="input"),
    Problem((InvalidTextError,), 400, kind=_INVALID, param="input"),
    Problem((InvalidDimensionsError,), 422, kind=_INVALID, param="dimensions"),
    Problem((UnknownPromptError,), 400, kind=_INVALID, param="prompt_name"),
    Problem((TooManyTokensError,), 413, kind=_INVALID, param="input"),
    Problem((NotOfferedError,), 404, kind=_INVALID),
    Problem(
        (BulkheadFullError, RateLimitExceededError, MemoryPressureError),
        429,
        "too much is waiting: come back later",
        "rate_limit_error",
    ),
    Problem((CallRefusedError, RemoteBusyError), 503, "the model cannot be asked now"),
    Problem((DeadlineExceededError,), 504, "the time for this request is over"),
    Problem((UpstreamError,), 502, "the remote server failed"),
    Problem((ServiceError,), 500, "the request failed"),
)


def not_ready() -> HTTPError:
    """Return the answer of a process that has no model yet."""
    return _not_ready("the model is not loaded yet")
