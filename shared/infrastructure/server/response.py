"""Replies as bytes."""

from __future__ import annotations

import http
import time
from email.utils import formatdate

from shared.infrastructure.server.messages import CLOSE, Header, Reply, StreamedReply

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_PHRASES = {status.value: status.phrase.encode() for status in http.HTTPStatus}
# Some servers make up statuses of their own, such as 529.
_STATUS_LINES = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b""))
    for status in range(100, 1000)
}
# They have no body, and say nothing of one.
BODILESS = frozenset({*range(100, 200), 204, 304})
# A large body is not copied for the sake of one write.
_LARGE = 64 * 1024


class _DateHeader:
    """The `Date` header, written anew once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._line = b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
        return self._line


_date = _DateHeader()


def encoded(reply: Reply, *, keep: bool, head_only: bool = False) -> list[bytes]:
    """Return the bytes of a reply, in as few pieces as is cheap.

    Args:
        reply: What is said.
        keep: Whether the connection is kept.
        head_only: Whether the client asked for the head alone.
    """
    if reply.status in BODILESS:
        return [_head(reply, None, keep=keep)]
    head = _head(reply, (b"content-length", b"%d" % len(reply.body)), keep=keep)
    if head_only:
        return [head]
    if len(reply.body) > _LARGE:
        return [head, reply.body]
    return [head + reply.body]


def streamed_head(reply: StreamedReply, *, keep: bool, is_chunked: bool) -> bytes:
    """Return the head of a streamed reply.

    Args:
        reply: What is said.
        keep: Whether the connection is kept.
        is_chunked: Whether the body is sent in chunks; else its end is that of the connection.
    """
    framing = (b"transfer-encoding", b"chunked") if is_chunked else None
    return _head(reply, framing, keep=keep and is_chunked)


def chunk(piece: bytes) -> list[bytes]:
    """Return a piece of a streamed body, not empty, as it is sent."""
    if len(piece) > _LARGE:
        return [b"%x\r\n" % len(piece), piece, b"\r\n"]
    return [b"%x\r\n%b\r\n" % (len(piece), piece)]


def _head(reply: Reply | StreamedReply, framing: Header | None, *, keep: bool) -> bytes:
    lines = [_STATUS_LINES[reply.status]]
    lines += [b"%b: %b\r\n" % header for header in reply.headers if header != CLOSE]
    if framing is not None:
        lines.append(b"%b: %b\r\n" % framing)
    lines.append(_date.line())
    lines.append(b"\r\n" if keep else b"connection: close\r\n\r\n")
    return b"".join(lines)
