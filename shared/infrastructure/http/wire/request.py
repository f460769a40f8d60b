"""A request in, bytes out: nothing that is not HTTP/1.1 gets past here."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from functools import lru_cache
from typing import NamedTuple

from shared.infrastructure.http.errors import LocalProtocolViolationError

Headers = Iterable[tuple[bytes, bytes]]
Body = bytes | AsyncIterable[bytes]

# RFC 9110, section 5.6.2, and section 5.5: a field value is made of these, and of nothing that
# could end a line.
_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TEXT = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_VISIBLE = bytes(range(0x21, 0x7F))

_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})


class Request(NamedTuple):
    """A request, and its head in the version of HTTP that will most likely carry it.

    Attributes:
        method: Request method.
        target: Path and query.
        host: Value of the Host field if `headers` have none.
        headers: Names and values.
        body: All of it, or what yields it; delimited as `headers` say.
        head: Its head, as some encoder has made it.
    """

    method: bytes
    target: bytes
    host: bytes
    headers: Headers
    body: Body
    head: object


class Head(NamedTuple):
    """The head of a request, and how its body is delimited.

    Attributes:
        data: Request line and fields as they go on the wire.
        length: Bytes the body must have; None if it is sent in chunks.
        closes: The request asks for the connection to be closed after it.
    """

    data: bytes
    length: int | None
    closes: bool


def encode_head(method: bytes, target: bytes, host: bytes, headers: Headers) -> Head:
    """Return the head of a request; fields keep their order and case, but Host comes first.

    Args:
        method: Request method.
        target: Path and query.
        host: Value of the Host field if `headers` have none.
        headers: Names and values.

    Raises:
        LocalProtocolViolationError: Something in it would not be read as what it was meant to be.
    """
    check_target(method, target)
    lines: list[bytes] = []
    framing: dict[bytes, bytes] = {}
    for name, value in headers:
        key = framing_key(name)
        if key is not None:
            note_framing(framing, key, value)
            if key == b"host":
                lines.insert(0, b"%b: %b\r\n" % (name, value))
                continue
        lines.append(b"%b: %b\r\n" % (name, value))
    if b"host" not in framing:
        lines.insert(0, b"Host: %b\r\n" % host)
    data = b"".join((method, b" ", target, b" HTTP/1.1\r\n", *lines, b"\r\n"))
    # What is left without the legal characters must be the line ends written above.
    if data.translate(None, TEXT) != b"\r\n" * (len(lines) + 2):
        raise LocalProtocolViolationError("a header has a control character in its value")
    return Head(data, *delimiter(framing))


def check_target(method: bytes, target: bytes) -> None:
    """Check what a request asks for.

    Raises:
        LocalProtocolViolationError: No request may ask for that.
    """
    if not method or method.translate(None, _TOKEN):
        raise LocalProtocolViolationError("the method is not an HTTP token")
    if not target or target.translate(None, _VISIBLE):
        raise LocalProtocolViolationError("the target has characters that no URL may have")


@lru_cache(maxsize=1024)
def framing_key(name: bytes) -> bytes | None:
    """Return the name of a header that decides on framing in lower case, None for any other."""
    if not name or name.translate(None, _TOKEN):
        raise LocalProtocolViolationError("the name of a header is not an HTTP token")
    key = name.lower()
    return key if key in _FRAMING else None


def note_framing(framing: dict[bytes, bytes], key: bytes, value: bytes) -> None:
    """Add a header to those that decide on framing.

    Raises:
        LocalProtocolViolationError: There is one of that name, and two would contradict each other.
    """
    if key in framing:
        if key != b"connection":
            raise LocalProtocolViolationError(f"two {key.decode()} headers")
        value = framing[key] + b"," + value
    framing[key] = value


def delimiter(framing: dict[bytes, bytes]) -> tuple[int | None, bool]:
    """Return the length of the body, None if only its end will tell, and if the connection closes.

    Raises:
        LocalProtocolViolationError: The headers do not say it, or twice.
    """
    connection = framing.get(b"connection", b"").lower()
    closes = b"close" in connection and b"close" in [
        option.strip(b" \t") for option in connection.split(b",")
    ]
    length = framing.get(b"content-length")
    coding = framing.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise LocalProtocolViolationError("both Content-Length and Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise LocalProtocolViolationError("a Transfer-Encoding other than chunked")
        return None, closes
    if length is not None and not length.isdigit():
        raise LocalProtocolViolationError("Content-Length is not a number")
    return int(length or 0), closes
