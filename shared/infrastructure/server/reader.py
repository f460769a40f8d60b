"""From the bytes of a connection to requests, and to refusals of what cannot become one."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote

import httptools

from shared.infrastructure.server.config import ServerConfig
from shared.infrastructure.server.messages import (
    HTTPError,
    Reply,
    Request,
    not_ready,
    too_large,
    too_many,
    too_slow,
)

# Of a head, or of trailers; the parser copies an unfinished header whenever more of it comes.
_MAX_HEAD = 64 * 1024
# Requests read ahead of the one that is answered before the connection is read no further.
_MAX_WAITING = 4
# Parsed before a look at how many requests wait.
_PIECE = 4 * 1024
# What a request that is refused may still send, so that the connection can be kept.
_SMALL_BODY = 64 * 1024
# Bodies on their way here at the same time, in the largest ones allowed.
_LARGEST_BODIES = 8
# Of these a second one is an attack on whoever reads the other one.
_ONCE = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key"}
)
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%\[\]:-]+\Z")


class Admission(Protocol):
    """What a reader asks about requests; an `App`."""

    config: ServerConfig

    def refuse(self, request: Request) -> Reply | None:
        """Return the answer to a request if that does not depend on its body, or None."""
        ...

    def failed(self, request: Request, error: Exception) -> Reply:
        """Return the answer to a request that ended in `error`."""
        ...


@dataclass(slots=True)
class BodyCount:
    """Bytes of bodies that are on their way here or not answered, over all connections."""

    bytes: int = 0


@dataclass(slots=True)
class Incoming:
    """A request to answer.

    Attributes:
        request: It, with its whole body unless it was refused.
        refusal: Its answer, if that is known.
        keep: Whether the connection may be kept afterwards.
        counted: Bytes of its body in the `BodyCount`, until it is answered.
        takes_chunks: Whether the answer may be sent in chunks.
    """

    request: Request
    refusal: Reply | None
    keep: bool
    counted: int = 0
    takes_chunks: bool = True


class _ReadingOverError(Exception):
    """Nothing more of this connection is read; out of a callback of the parser."""


class _Message:
    """A request on its way here."""

    __slots__ = ("body", "body_bytes", "headers", "is_expected", "refusal", "request", "url")

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.request: Request | None = None
        self.refusal: Reply | None = None
        self.is_expected = False
        self.body = bytearray()
        self.body_bytes = 0

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head."""
        length = self.headers.get(b"content-length", b"0")
        return length != b"0" or b"transfer-encoding" in self.headers


class RequestReader:
    """The requests on one connection, in order.

    Args:
        app: Says who is refused.
        bodies: What is here, or on its way, on all connections.
        now: Monotonic time.

    Attributes:
        ready: Requests to answer.
        deadline: When whatever the client is about should be over.
        is_over: Whether nothing more is read.
        takes_interim: Whether the client understands replies before the final one.
        is_surplus: Whether the connection is one too many: it may ask how the process is, and then
            ends.
    """

    def __init__(self, app: Admission, bodies: BodyCount, now: Callable[[], float]) -> None:
        self._app = app
        self._config = app.config
        self._bodies = bodies
        self._now = now
        self._parser: Any = httptools.HttpRequestParser(self)
        self._message: _Message | None = None
        self._rest = b""
        # Bytes since the parser last gave something that is counted elsewhere.
        self._loose = 0
        self.ready: deque[Incoming] = deque()
        self.deadline = math.inf
        self.is_over = False
        self.takes_interim = True
        self.is_surplus = False

    @property
    def is_between(self) -> bool:
        """Whether no request is partly here."""
        return self._message is None

    @property
    def has_more(self) -> bool:
        """Whether there are requests to answer, or bytes that may become some."""
        return bool(self.ready or self._rest)

    @property
    def is_full(self) -> bool:
        """Whether so much waits that the client should be read no further."""
        return bool(self._rest) or len(self.ready) > _MAX_WAITING

    def take_continue(self) -> bool:
        """Return, once, whether the client waits for a word before it sends the body."""
        message = self._message
        if message is None or not message.is_expected or message.body_bytes:
            return False
        message.is_expected = False
        return True

    def feed(self, data: bytes) -> None:
        """Read on; what is complete is in `ready`."""
        self._rest += data
        self.read_on()

    def read_on(self) -> None:
        """Read what is left of what was fed, until enough requests wait."""
        rest, start = self._rest, 0
        while start < len(rest) and len(self.ready) <= _MAX_WAITING and not self.is_over:
            start += self._parse(rest[start : start + _PIECE])
        self._rest = b"" if self.is_over else rest[start:]

    def _parse(self, data: bytes) -> int:
        """Return how many bytes were parsed."""
        self._loose += len(data)
        parsed = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            parsed = upgrade.args[0]
            self._decline()
        except httptools.HttpParserError as error:
            if not self.is_over:
                self._fail(HTTPError(400, f"this is no HTTP/1.1: {error}", code="invalid_http"))
        if self._loose > _MAX_HEAD and not self.is_over:
            self._fail(HTTPError(431, "the head is too large", code="head_too_large"))
        return parsed

    def _decline(self) -> None:
        """Stay with HTTP/1.1, whatever the client offered beside it."""
        if self.ready and self.ready[-1].request.method == "CONNECT":
            # What follows is something else.
            self.is_over = True
            self.ready[-1].keep = False
            return
        declined, self._parser = self._parser, httptools.HttpRequestParser(self)
        message = self._message
        if message is not None:
            # The parser believes that no body can follow; a new one is told of nothing else.
            keep = b"keep-alive" if declined.should_keep_alive() else b"close"
            lengths = (b"content-length", b"transfer-encoding")
            head = [b"POST / HTTP/1.1", b"connection: " + keep]
            head += [b"%b: %b" % (n, message.headers[n]) for n in lengths if n in message.headers]
            self._parser.feed_data(b"\r\n".join(head) + b"\r\n\r\n")

    def renew(self) -> None:
        """Give the client its time again: it could not send while it was not read."""
        message = self._message
        if message is not None:
            in_head = message.request is None
            config = self._config
            seconds = config.header_timeout if in_head else config.body_timeout
            self.deadline = self._now() + seconds

    def expire(self) -> None:
        """Refuse the request that has not come in time."""
        in_head = self._message is None or self._message.request is None
        config = self._config
        if in_head and self.is_surplus:
            self._fail(too_many())
            return
        self._fail(too_slow(config.header_timeout if in_head else config.body_timeout))

    def refuse(self, error: HTTPError) -> None:
        """Refuse the request that is partly here."""
        self._fail(error)

    def end(self) -> None:
        """Take note that the client sends no more; what is in `ready` is to be answered."""
        self.is_over = True
        self._rest = b""
        self._forget()
        self.deadline = math.inf
        if self._parser is not None:
            self.takes_interim = self._parser.get_http_version() != "1.0"

    def close(self) -> None:
        """Forget what has not been read, and the parser, which holds on to this reader."""
        self.end()
        self._bodies.bytes -= sum(incoming.counted for incoming in self.ready)
        self.ready.clear()
        self._parser = None

    # The parser calls the rest.

    def on_message_begin(self) -> None:
        if self._message is not None:  # it goes on in a new parser
            return
        self._message = _Message()
        self.deadline = self._now() + self._config.header_timeout

    def on_url(self, url: bytes) -> None:
        if self._message is not None:
            self._message.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        message = self._message
        if message is None or message.request is not None:  # of a trailer
            return
        name = name.lower()
        if name not in message.headers:
            message.headers[name] = value
        elif name in _ONCE:
            self._fail(HTTPError(400, "a header comes twice", code="invalid_http"))
            raise _ReadingOverError

    def on_headers_complete(self) -> None:
        message = self._message
        if message is None or message.request is not None:
            return
        self._loose = 0
        self.deadline = self._now() + self._config.body_timeout
        path, _, query = _target(message.url).partition(b"?")
        method = self._parser.get_method().decode("latin-1")
        message.request = request = Request(method, _decoded(path), message.headers, query)
        message.refusal = self._app.refuse(request)
        fault = _fault(message.headers, self._parser)
        if fault is None and self.is_surplus and not _is_probe(request):
            fault = too_many()
        size = int(message.headers.get(b"content-length", b"0"))
        if fault is None and size > self._config.max_body_bytes:
            fault = too_large(self._config.max_body_bytes)
        if fault is not None:
            self._fail(fault)
        elif message.refusal is not None and size > _SMALL_BODY:
            self._cut(message.refusal)
        if self.is_over:
            raise _ReadingOverError
        message.is_expected = b"expect" in message.headers and message.refusal is None

    def on_body(self, body: bytes) -> None:
        message = self._message
        if message is None:
            return
        self._loose = 0
        message.body_bytes += len(body)
        self._bodies.bytes += len(body)
        if message.refusal is not None:
            if message.body_bytes > _SMALL_BODY:
                self._cut(message.refusal)
        elif message.body_bytes > self._config.max_body_bytes:
            self._fail(too_large(self._config.max_body_bytes))
        elif self._bodies.bytes > _LARGEST_BODIES * self._config.max_body_bytes:
            self._fail(not_ready("too many large bodies at once", "bodies_full"))
        else:
            message.body += body
        if self.is_over:
            raise _ReadingOverError

    def on_message_complete(self) -> None:
        message = self._message
        if message is None or message.request is None:
            return
        is_tunnel = message.request.method == "CONNECT"
        if self._parser.should_upgrade() and message.has_body and not is_tunnel:
            return
        self._loose = 0
        self.deadline = math.inf
        message.request.body = bytes(message.body)
        keep = self._parser.should_keep_alive() and not self.is_surplus
        chunks = self._parser.get_http_version() != "1.0"
        self.ready.append(
            Incoming(message.request, message.refusal, keep, message.body_bytes, chunks)
        )
        self._message = None

    def _fail(self, error: HTTPError) -> None:
        """Refuse what is partly here, and read no more."""
        message = self._message
        if message is not None and message.refusal is not None:
            # It has been refused, and counted, already.
            self._cut(message.refusal)
            return
        request = (message and message.request) or Request("", "", {})
        if not request.began:
            request.began = self._now()
        self._cut(self._app.failed(request, error))

    def _cut(self, refusal: Reply) -> None:
        request = (self._message and self._message.request) or Request("", "", {})
        self.ready.append(Incoming(request, refusal, keep=False))
        self._forget()
        self.deadline = math.inf
        self.is_over = True

    def _forget(self) -> None:
        if self._message is not None:
            self._bodies.bytes -= self._message.body_bytes
            self._message = None


def _target(url: bytes) -> bytes:
    """Return the path of a request, also of one that is written as to a proxy."""
    if url.startswith(b"/"):
        return url
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        return url
    path = parsed.path or b"/"
    return path + b"?" + parsed.query if parsed.query else path


def _is_probe(request: Request) -> bool:
    return request.route is not None and request.route.is_probe


def _decoded(path: bytes) -> str:
    text = path.decode("latin-1")
    return unquote(text, "latin-1") if "%" in text else text


def _fault(headers: Mapping[bytes, bytes], parser: Any) -> HTTPError | None:
    """Return what is wrong with a head, so that nothing on the way may read it differently."""
    host, coding = headers.get(b"host"), headers.get(b"transfer-encoding")
    length = headers.get(b"content-length")
    wrong = None
    if host is None and parser.get_http_version() != "1.0":
        wrong = "the Host header is missing"
    elif host and not _HOST.match(host):
        wrong = "the Host header names no host"
    elif coding and parser.get_http_version() == "1.0":
        wrong = "HTTP/1.0 knows no Transfer-Encoding"
    elif coding and length:
        wrong = "there are two lengths of the body"
    elif coding and coding.lower() != b"chunked":
        wrong = "only Transfer-Encoding: chunked is read"
    if wrong is not None:
        return HTTPError(400, wrong, code="invalid_http")
    if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
        return HTTPError(417, "only 100-continue can be expected", code="expectation_failed")
    return None
