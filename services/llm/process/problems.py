"""How the errors of the pool are answered, in OpenAI's shape and in Anthropic's."""

from __future__ import annotations

from typing import Any, cast

import orjson

from shared.infrastructure.balancing import (
    InBandError,
    NoHostAvailableError,
    TokenLimitError,
)
from shared.infrastructure.http import UpstreamError
from shared.infrastructure.resilience import (
    AttemptTimeoutError,
    BulkheadFullError,
    CallRefusedError,
    ConfigurationError,
    DeadlineExceededError,
    RateLimitExceededError,
    ServiceError,
)
from shared.infrastructure.server import HTTPError, Problem, Problems, Route

_BUSY = (BulkheadFullError, RateLimitExceededError, TokenLimitError)

PROBLEMS = Problems(
    Problem(_BUSY, 429, "too much is asked of the hosts: come back later", "rate_limit_error"),
    Problem((NoHostAvailableError,), 503, "no host can take the request now"),
    Problem((CallRefusedError,), 503, "the hosts cannot be asked now"),
    Problem((AttemptTimeoutError,), 504, "the hosts did not answer in time"),
    Problem((DeadlineExceededError,), 504, "the time for this request is over"),
    Problem((ConfigurationError,), 400, kind="invalid_request_error"),
    Problem((UpstreamError,), 502, "the host failed"),
    Problem((ServiceError,), 502, "the request failed"),
)

_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# Of what a host says that is no JSON.
_MAX_MESSAGE = 1000


def anthropic_error(error: HTTPError) -> dict[str, Any]:
    """Return an error in Anthropic's shape."""
    default = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_KINDS.get(error.status, default)
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def in_shape(route: Route | None, status: int, body: bytes) -> bytes:
    """Return a host's error in the shape of a route: a host may know no shape but OpenAI's."""
    if route is None or route.error is not anthropic_error:
        return body
    try:
        told: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        told = body.decode(errors="replace")[:_MAX_MESSAGE]
    outer = _object(told)
    error: object = outer.get("error", told)
    if outer.get("type") == "error" and isinstance(error, dict):
        return body
    message = _object(error).get("message", outer.get("message", error))
    text = message if isinstance(message, str) else orjson.dumps(message).decode()
    return orjson.dumps(anthropic_error(HTTPError(status, text or "the host failed")))


def _object(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def anthropic_event(error: HTTPError) -> bytes:
    """Return an error as the last event of a stream of Anthropic's messages."""
    return b"event: error\ndata: %b\n\n" % orjson.dumps(anthropic_error(error))


def responses_event(error: HTTPError) -> bytes:
    """Return an error as the last event of a stream of OpenAI's responses."""
    told = {
        "type": "error",
        "code": error.code,
        "message": error.message,
        "param": error.param,
        "sequence_number": 0,
    }
    return b"event: error\ndata: %b\n\n" % orjson.dumps(told)


def is_told(error: Exception) -> bool:
    """Say whether the client has read of an error already, in the stream itself."""
    return isinstance(error, InBandError)
