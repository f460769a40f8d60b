"""Replies as bytes."""

from __future__ import annotations

import http
import time
from email.utils import formatdate

from services.embedding.process.messages import CLOSE, Reply

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in http.HTTPStatus
}
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
    lines = [_STATUS_LINES[reply.status]]
    lines += [b"%b: %b\r\n" % header for header in reply.headers if header != CLOSE]
    lines.append(b"content-length: %d\r\n" % len(reply.body))
    lines.append(_date.line())
    lines.append(b"\r\n" if keep else b"connection: close\r\n\r\n")
    if head_only:
        return [b"".join(lines)]
    if len(reply.body) > _LARGE:
        return [b"".join(lines), reply.body]
    lines.append(reply.body)
    return [b"".join(lines)]
