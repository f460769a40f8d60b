"""Requests and replies of the process, whoever carries them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.infrastructure.resilience import MissingExtraError

if TYPE_CHECKING:
    from services.embedding.process.routes import Route

try:
    import orjson
except ImportError as exc:
    raise MissingExtraError("the embedding process", "embedding") from exc

Header = tuple[bytes, bytes]

JSON: Header = (b"content-type", b"application/json")
RAW = b"application/octet-stream"
CLOSE: Header = (b"connection", b"close")


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
        tenant: Short name of the API key it came with; "" if none is asked for.
    """

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    query: bytes = b""
    body: bytes = b""
    route: Route | None = None
    began: float = 0.0
    tenant: str = ""


@dataclass(slots=True, eq=False)
class Reply:
    """A whole answer."""

    body: bytes
    status: int = 200
    headers: tuple[Header, ...] = (JSON,)


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
