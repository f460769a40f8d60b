"""Requests and replies of a server, whoever carries them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared.infrastructure.resilience import MissingExtraError

if TYPE_CHECKING:
    from shared.infrastructure.server.routes import Route

try:
    import orjson
except ImportError as exc:
    raise MissingExtraError("the HTTP server", "server") from exc

Header = tuple[bytes, bytes]

JSON: Header = (b"content-type", b"application/json")
CLOSE: Header = (b"connection", b"close")

_DEFAULT_RETRY_AFTER = 1.0


@dataclass(slots=True, eq=False)
class Request:
    """What a client wants.

    Attributes:
        method: Upper-case HTTP method.
        path: Decoded path.
        headers: Values by lower-case name; the first of each.
        query: What is behind the `?`.
        body: All of it, once it is here.
        route: What the path leads to, once it was looked for.
        began: When its head was here, on the monotonic clock.
        id: Name of the request, for the client and the log.
        tenant: Short name of the API key it came with; "" if none is asked for.
        template: The path as it is in the table of routes; "" if it is not there.
        params: What stands in the open parts of that, by name.
    """

    method: str
    path: str
    headers: Mapping[bytes, bytes] = field(repr=False)
    query: bytes = field(default=b"", repr=False)
    body: bytes = field(default=b"", repr=False)
    route: Route | None = None
    began: float = 0.0
    id: str = ""
    tenant: str = ""
    template: str = ""
    params: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True, eq=False)
class Reply:
    """A whole answer."""

    body: bytes
    status: int = 200
    headers: tuple[Header, ...] = (JSON,)


@dataclass(slots=True, eq=False)
class StreamedReply:
    """An answer whose body is still being made.

    Attributes:
        body: Its pieces; the next is asked for when the client has room for it.
        close: Lets go of whatever makes the body; called once, whether it was read or not.
        status: HTTP status.
        headers: Beside those of the framing.
    """

    body: AsyncIterator[bytes]
    close: Callable[[], Awaitable[object]]
    status: int = 200
    headers: tuple[Header, ...] = ()


class HTTPError(Exception):
    """An answer that is not what the client asked for.

    Args:
        status: HTTP status code.
        message: What is wrong and what to do; nothing of our insides.
        kind: OpenAI's `type` of the error.
        code: Stable name of the error.
        param: Field of the request that is to blame.
        headers: Sent with the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Iterable[Header] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = tuple(headers)


def json_reply(content: object, status: int = 200, headers: tuple[Header, ...] = ()) -> Reply:
    """Return `content` as JSON."""
    return Reply(orjson.dumps(content), status, (JSON, *headers))


def openai_error(error: HTTPError) -> dict[str, object]:
    """Return an error in OpenAI's shape."""
    return {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


def too_large(limit: int) -> HTTPError:
    """Return the error of a body larger than `limit` bytes; what is left of it is not read."""
    return HTTPError(
        413,
        f"the request body is larger than {limit} bytes",
        code="body_too_large",
        headers=[CLOSE],
    )


def too_slow(seconds: float) -> HTTPError:
    """Return the error of a request that was not all here within `seconds`."""
    return HTTPError(
        408, f"the request was not here within {seconds:g} s", code="too_slow", headers=[CLOSE]
    )


def not_ready(message: str, code: str = "not_ready") -> HTTPError:
    """Return the error of a process that cannot serve now."""
    return HTTPError(503, message, kind="server_error", code=code, headers=retry_after())


def too_many() -> HTTPError:
    """Return the error of a connection that is one too many."""
    return not_ready("too many connections", "connections_full")


def shutting_down() -> HTTPError:
    """Return the error of a request that is in flight when the process has to leave."""
    return not_ready("the process is shutting down", "shutting_down")


def retry_after(seconds: float | None = None) -> list[Header]:
    """Return the headers that ask a client to come back after `seconds`."""
    if seconds is None or not math.isfinite(seconds):
        seconds = _DEFAULT_RETRY_AFTER
    # The standard header knows whole seconds only; OpenAI's clients and ours read the other one.
    return [
        (b"retry-after", str(math.ceil(seconds)).encode()),
        (b"retry-after-ms", str(math.ceil(seconds * 1000)).encode()),
    ]
