"""One exchange on a connection of HTTP/2, and how much of it may be on its way."""

from __future__ import annotations

from shared.infrastructure.http.errors import UpstreamError
from shared.infrastructure.http.wire.exchange import Carrier, Exchange
from shared.infrastructure.http.wire.frames import MAX_WINDOW, Code, StreamFaultError
from shared.infrastructure.http.wire.http2_head import Http2Answer

STREAM_WINDOW = 1024 * 1024
"""Bytes of a body that may be unread: what a reader that does not read costs."""


class Stream(Exchange[Http2Answer]):
    """An exchange that shares its connection with others.

    Attributes:
        number: Its number on the connection; 0 until it is opened.
        window: Bytes of the body of the request that the service takes now.
        has_ended: The service has been told that the request is complete.
        is_kept: Its connection had brought an answer before.
        is_writing: What is waited for is room for more of the request.
        limit: Seconds it may wait.
        due: When they are over.
    """

    __slots__ = (
        *("_granted", "due", "has_ended", "is_kept", "is_writing", "limit", "number", "window"),
    )

    def __init__(self, answer: Http2Answer, connection: Carrier) -> None:
        super().__init__(answer, connection, closes=False)
        self.number = 0
        self.window = 0
        self.has_ended = False
        self.is_kept = False
        self.is_writing = False
        self.limit = 0.0
        self.due = 0.0
        self._granted = STREAM_WINDOW

    def open_window(self, size: int) -> None:
        """Let `size` bytes more of the request be sent.

        Raises:
            StreamFaultError: No window is that wide.
        """
        self.window += size
        if self.window > MAX_WINDOW:
            raise StreamFaultError("a window beyond 31 bits", Code.FLOW_CONTROL_ERROR)
        self.wake_writer()

    def receive(self, data: bytes, size: int) -> None:
        """Take a piece of the body that was `size` bytes of payload.

        Raises:
            StreamFaultError: It is not, or more than was granted.
        """
        self._granted -= size
        if self._granted < 0:
            raise StreamFaultError("a body beyond its window", Code.FLOW_CONTROL_ERROR)
        self.answer.feed_body(data)

    def grant(self) -> int:
        """Return how many bytes more the service may send, now that what came has been read.

        It is 0 until it is worth a frame.
        """
        size = STREAM_WINDOW - self._granted - self.answer.buffered
        if size < STREAM_WINDOW // 2:
            return 0
        self._granted += size
        return size

    def wake_reader(self) -> None:
        """Tell who waits for the answer; who waits for room must not gain time from it."""
        if not self.is_writing:
            self.wake()

    def wake_writer(self) -> None:
        """Tell who waits for room."""
        if self.is_writing:
            self.wake()

    def end(self, error: UpstreamError | None = None) -> None:
        super().end(error)
        self.is_writing = False
