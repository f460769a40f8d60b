"""Heads in HTTP/2: a request out of what HTTP/1.1 would say, an answer into the same."""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from hpack import HeaderTuple, NeverIndexedHeaderTuple

from shared.infrastructure.http.errors import LocalProtocolViolationError
from shared.infrastructure.http.wire.answer import MAX_FIELDS, Received
from shared.infrastructure.http.wire.frames import StreamFaultError
from shared.infrastructure.http.wire.request import (
    TEXT,
    Headers,
    check_target,
    delimiter,
    framing_key,
    note_framing,
)

# RFC 9113, section 8.2.2: what is about one connection of HTTP/1.1 has no place here.
_CONNECTION_SPECIFIC = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
# Secrets, which a table shared with others could give away, and what is never the same twice.
_UNINDEXED = frozenset({b"authorization", b"proxy-authorization", b"cookie", b"content-length"})
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_STATUS = re.compile(rb"[1-9][0-9][0-9]")

Fields = list[HeaderTuple]


class Http2Head(NamedTuple):
    """The head of a request.

    Attributes:
        fields: Its fields, the pseudo-header fields first.
        length: Bytes the body must have; None if its end is not known beforehand.
    """

    fields: Fields
    length: int | None


def encode_http2_head(method: bytes, target: bytes, host: bytes, headers: Headers) -> Http2Head:
    """Return the head of a request; fields keep their order, and Host becomes the authority.

    Args:
        method: Request method.
        target: Path and query.
        host: The authority, if `headers` have no Host.
        headers: Names and values.

    Raises:
        LocalProtocolViolationError: Something in it would not be read as what it was meant to be.
    """
    check_target(method, target)
    framing: dict[bytes, bytes] = {}
    fields: Fields = []
    values: list[bytes] = []
    for name, value in headers:
        key = framing_key(name)
        if key is not None:
            note_framing(framing, key, value)
        kind, lower = _outgoing(name)
        values.append(value)
        if kind is not None and not (lower == b"te" and value.lower() != b"trailers"):
            fields.append(kind(lower, value.strip(b" \t")))
    if b"".join(values).translate(None, TEXT):
        raise LocalProtocolViolationError("a header has a control character in its value")
    length, _closes = delimiter(framing)
    pseudo = [
        HeaderTuple(b":method", method),
        HeaderTuple(b":scheme", b"https"),
        HeaderTuple(b":authority", framing.get(b"host", host)),
        NeverIndexedHeaderTuple(b":path", target),
    ]
    return Http2Head(pseudo + fields, length)


@lru_cache(maxsize=1024)
def _outgoing(name: bytes) -> tuple[type[HeaderTuple] | None, bytes]:
    """Return how a field of that name is sent, None for not at all, and the name in lower case."""
    lower = name.lower()
    if lower in _CONNECTION_SPECIFIC or lower == b"host":
        return None, lower
    return (NeverIndexedHeaderTuple if lower in _UNINDEXED else HeaderTuple), lower


class Http2Answer(Received):
    """An answer in HTTP/2.

    Args:
        bodiless: As for `Received`.
        max_head: As for `Received`; counted as HTTP/2 counts: 32 bytes more for each field.
    """

    __slots__ = ("_left", "_spent")

    def __init__(self, *, bodiless: bool, max_head: int) -> None:
        super().__init__(bodiless=bodiless, max_head=max_head)
        self.http_version = b"HTTP/2"
        self._left: int | None = None
        self._spent = 0

    def feed_head(self, fields: list[tuple[bytes, bytes]], *, ends: bool) -> None:
        """Take a block of fields: an informational answer, the head, or what follows the body.

        Args:
            fields: Names and values.
            ends: Nothing follows.

        Raises:
            StreamFaultError: This is no answer.
        """
        self.has_begun = True
        if self.status:
            if not ends:
                raise StreamFaultError("a second head")
            return  # fields after the body: nobody asked for them
        self._spent += sum(len(name) + len(value) + 32 for name, value in fields)
        if self._spent > self._max_head:
            raise StreamFaultError(f"the head of the answer has more than {self._max_head} bytes")
        status, length = _checked(fields)
        if status < 200:
            if status == 101 or ends:
                raise StreamFaultError(f"unexpected status {status}")
            return
        if len(fields) > MAX_FIELDS:
            raise StreamFaultError(f"the answer has more than {MAX_FIELDS} header fields")
        self._bodiless = self._bodiless or status in {204, 304}
        self._left = None if self._bodiless else length
        self.headers = fields[1:]
        self.reason = _phrase(status)
        self.status = status

    def feed_body(self, data: bytes) -> None:
        """Take a piece of the body.

        Raises:
            StreamFaultError: There is none to be.
        """
        if not self.status:
            raise StreamFaultError("a body before its head")
        if not data:
            return
        if self._bodiless:
            raise StreamFaultError("a body where there is none to be")
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise StreamFaultError("the body is longer than its length")
        self.chunks.append(data)
        self.buffered += len(data)

    def feed_end(self) -> None:
        """Take the end of the stream for that of the answer.

        Raises:
            StreamFaultError: It is not.
        """
        if self._left:
            raise StreamFaultError("the body is shorter than its length")
        self.is_over = True


def _checked(fields: list[tuple[bytes, bytes]]) -> tuple[int, int | None]:
    """Return the status and the length of the body, if the fields say it."""
    if not fields or fields[0][0] != b":status":
        raise StreamFaultError("a head without a status")
    status, length = fields[0][1], None
    if not _STATUS.fullmatch(status):
        raise StreamFaultError("a status that is none")
    for name, value in fields[1:]:
        if not _is_name(name):
            raise StreamFaultError("a field that no answer may have")
        if name == b"content-length":
            if not value.isdigit() or (length is not None and int(value) != length):
                raise StreamFaultError("a length that is none")
            length = int(value)
    values = b"".join([value for _, value in fields])
    if b"\n" in values or b"\r" in values or b"\0" in values:
        raise StreamFaultError("a line end in a field")
    return int(status), length


@lru_cache(maxsize=1024)
def _is_name(name: bytes) -> bool:
    return _NAME.fullmatch(name) is not None and name not in _CONNECTION_SPECIFIC


@lru_cache(maxsize=1024)
def _phrase(status: int) -> bytes:
    """Return the phrase HTTP/1.1 would have; HTTP/2 has none."""
    return HTTPStatus(status).phrase.encode() if status in HTTPStatus._value2member_map_ else b""
