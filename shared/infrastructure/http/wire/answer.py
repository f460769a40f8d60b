"""Bytes in, an answer out: what httptools reads, held to the stricter rules of a client."""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from shared.infrastructure.http.errors import RemoteProtocolViolationError

MAX_FIELDS = 256
_VERSIONS = {"1.1": b"HTTP/1.1", "1.0": b"HTTP/1.0"}


class _StopError(Exception):
    """Makes the parser read no further."""


class Received:
    """The answer to one request, as far as it has arrived, in whatever version of HTTP.

    Args:
        bodiless: The request was a HEAD: what the fields say of a body is about none.
        max_head: Bytes that the head may have, informational answers included.

    Attributes:
        status: Status code; 0 until the head is complete.
        reason: Reason phrase.
        http_version: Version of the answer.
        headers: Names and values in order, in the case they came.
        chunks: Pieces of the body that nobody has taken yet.
        buffered: Their size in bytes.
        has_begun: At least one byte has arrived.
        is_over: The answer is complete.
    """

    __slots__ = (
        *("_bodiless", "_max_head", "buffered", "chunks", "has_begun", "headers", "http_version"),
        *("is_over", "reason", "status"),
    )

    def __init__(self, *, bodiless: bool, max_head: int) -> None:
        self.status = 0
        self.reason = b""
        self.http_version = b"HTTP/1.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunks: list[bytes] = []
        self.buffered: int = 0
        self.has_begun = False
        self.is_over = False
        self._bodiless = bodiless
        self._max_head = max_head

    def drop(self) -> None:
        """Read no more; what has arrived stays."""

    def take(self) -> bytes:
        """Return what has arrived of the body since the last time."""
        chunks = self.chunks
        if not chunks:
            return b""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.buffered = 0
        return data


class Answer(Received):
    """An answer in HTTP/1.

    Each answer has a parser of its own, so that nothing of one exchange can reach another.

    Args:
        bodiless: As for `Received`.
        max_head: As for `Received`; and bytes that may pass without a byte of body later on.

    Attributes:
        is_reusable: The connection may carry another exchange after it.
    """

    __slots__ = ("_chunked", "_parser", "_problem", "_quiet", "is_reusable")

    def __init__(self, *, bodiless: bool, max_head: int) -> None:
        super().__init__(bodiless=bodiless, max_head=max_head)
        self.is_reusable = False
        self._chunked = False
        self._problem = ""
        self._quiet = 0
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Read on.

        Raises:
            RemoteProtocolViolationError: This is not, or no longer, an answer in HTTP/1.
        """
        parser = self._parser
        if parser is None:
            return
        if not self.has_begun:
            self.has_begun = True
            if data[:1] != b"H":  # the parser would let RTSP and empty lines pass
                self._problem = "the answer is not HTTP/1"
        self._quiet = quiet = self._quiet + len(data)
        try:
            if not self._problem:
                parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as exc:
            # Whatever follows a complete answer was not asked for.
            self.is_reusable = False
            if not self.is_over:
                self._problem = self._problem or f"the answer is not valid HTTP/1: {exc}"
        if quiet > self._max_head:
            self._check_size()
        if self._problem:
            self.drop()
            raise RemoteProtocolViolationError(self._problem)
        if self.is_over:
            self.drop()

    def feed_eof(self) -> None:
        """Take the end of the connection for the end of the answer.

        Raises:
            RemoteProtocolViolationError: The answer cannot end so.
        """
        self.drop()
        if not self.status:
            raise RemoteProtocolViolationError("the connection ended within the answer's head")
        if self._chunked or any(name.lower() == b"content-length" for name, _ in self.headers):
            raise RemoteProtocolViolationError("the connection ended within the answer's body")
        self.is_over = True

    def drop(self) -> None:
        """Read no more; what has arrived stays."""
        self._parser = None  # which refers to us

    def on_message_begin(self) -> None:
        if self.is_over:
            raise _StopError

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:  # a trailer: nobody asked for one
            return
        if len(name) == 17 and name.lower() == b"transfer-encoding":
            if self._chunked or value.strip(b" \t").lower() != b"chunked":
                self._stop("a transfer coding other than chunked")
            self._chunked = True
        self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None:
            raise _StopError
        status = parser.get_status_code()
        version = parser.get_http_version()
        if version not in _VERSIONS:
            self._stop(f"the answer is HTTP/{version}")
        if status < 200:
            if status == 101 or status < 100:
                self._stop(f"unexpected status {status}")
            self.reason = b""
            self.headers.clear()
            self._chunked = False
            return
        if len(self.headers) > MAX_FIELDS:
            self._stop(f"the answer has more than {MAX_FIELDS} header fields")
        if b"\x00" in self.reason:
            self._stop("the reason phrase has a NUL")
        self.status = status
        self.http_version = _VERSIONS[version]
        # With HTTP/1.0 too much depends on who stands in between.
        self.is_reusable = version == "1.1" and parser.should_keep_alive()
        self.is_over = self._bodiless

    def on_body(self, data: bytes) -> None:
        if self.is_over:
            raise _StopError
        self._quiet = 0
        self.buffered += len(data)
        self.chunks.append(data)

    def on_message_complete(self) -> None:
        if self.status:
            self.is_over = True

    def _stop(self, problem: str) -> None:
        self._problem = problem
        raise _StopError

    def _check_size(self) -> None:
        head = sum(len(name) + len(value) + 4 for name, value in self.headers)
        if not self.status or head > self._max_head or self._quiet > self._max_head:
            part = "fields after the body" if self.status else "head"
            self._problem = f"the {part} of the answer has more than {self._max_head} bytes"
