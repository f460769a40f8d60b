"""The server's end of an HTTP/2 connection, frame by frame: it lets a script send any nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import hpack
from hyperframe import frame as frames

from tests.raw_server import Peer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0x0, 0x1, 0x2, 0x3
REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM, HTTP_1_1_REQUIRED = 0x7, 0x8, 0xB, 0xD
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 3, 4, 5

# Every client takes frames of this size.
_FRAME = 16_384


@dataclass
class Stream:
    """A request as far as it has arrived.

    Attributes:
        id: Number of its stream.
        headers: Names, pseudo-headers included, and values.
        body: Its body so far.
        is_whole: The client has ended it.
        reset: Code with which the client reset it, if it did.
        window: Bytes of an answer that the client still takes.
    """

    id: int
    headers: dict[str, str]
    window: int
    body: bytes = b""
    is_whole: bool = False
    reset: int | None = None

    @property
    def path(self) -> str:
        return self.headers[":path"]


@dataclass
class H2Peer:
    """One connection; everything a script sends goes out as it is, whatever HTTP/2 says of it.

    Attributes:
        peer: The bytes below.
        settings: Sent at the beginning.
        meanwhile: Does something as long as the server is there.
        opens_window: Whether bodies of requests are granted the bytes they took.
        streams: Requests by stream, oldest first.
        window: Bytes of bodies that the client still takes on this connection.
        agreed: What the client has set, by the number of the setting.
        is_open: The client has not hung up.
        goaway: Code with which the client said goodbye, if it did.
    """

    peer: Peer
    settings: dict[int, int]
    meanwhile: Callable[[Coroutine[Any, Any, None]], None]
    opens_window: bool = True
    streams: dict[int, Stream] = field(default_factory=dict)
    goaway: int | None = None
    window: int = 65_535
    agreed: dict[int, int] = field(default_factory=dict)
    is_open: bool = True
    _unread: list[Stream] = field(default_factory=list)
    _encoder: hpack.Encoder = field(default_factory=hpack.Encoder)
    _decoder: hpack.Decoder = field(default_factory=hpack.Decoder)

    async def start(self) -> None:
        assert await self.peer.reader.readexactly(len(PREFACE)) == PREFACE
        await self.send(frames.SettingsFrame(0, settings=self.settings))

    async def send(self, *sent: frames.Frame | bytes) -> None:
        """Send frames, or bytes that are none, all in one piece."""
        data = b"".join(one if isinstance(one, bytes) else one.serialize() for one in sent)
        await self.peer.send(data)

    def headers(self, stream: int, *fields: tuple[str, str], end: bool = False) -> frames.Frame:
        """Return the frame of an answer's head; encoded now, so it must be sent, and in order."""
        frame = frames.HeadersFrame(stream, self._encoder.encode(fields))
        frame.flags |= {"END_HEADERS", "END_STREAM"} if end else {"END_HEADERS"}
        return frame

    def answer_now(self, stream: int) -> None:
        """Send a good answer, if anybody is there."""
        writer = self.peer.writer
        if not writer.is_closing():
            self.window -= 2
            head = self.headers(stream, (":status", "200"))
            writer.write(head.serialize() + data(stream, b"ok", end=True).serialize())

    async def body(self, stream: Stream, content: bytes) -> None:
        """Send a whole body, as fast as the client lets us."""
        at = 0
        while at < len(content) and stream.reset is None:
            room = min(self.window, stream.window, _FRAME)
            if room <= 0:
                await self.frame()
                continue
            piece = content[at : at + room]
            at += len(piece)
            self.window -= len(piece)
            stream.window -= len(piece)
            await self.send(data(stream.id, piece))
        await self.send(data(stream.id, b"", end=True))

    async def request(self) -> Stream:
        """Wait for the head of the next request."""
        while not self._unread:
            await self.frame()
        return self._unread.pop(0)

    async def whole(self, stream: Stream) -> bytes:
        """Wait for the end of a request."""
        while not stream.is_whole:
            await self.frame()
        return stream.body

    async def gone(self) -> None:
        """Read on until the client goes away."""
        try:
            while True:
                await self.frame()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.is_open = False

    async def frame(self) -> frames.Frame:
        """Read one frame, and do what every server does about it."""
        head = await self.peer.reader.readexactly(9)
        frame, length = frames.Frame.parse_frame_header(memoryview(head))
        frame.parse_body(memoryview(await self.peer.reader.readexactly(length)))
        if isinstance(frame, frames.HeadersFrame):
            self._begin(frame)
        if stream := self.streams.get(frame.stream_id):
            await self._go_on(stream, frame, length)
        elif isinstance(frame, frames.WindowUpdateFrame):
            self.window += frame.window_increment
        elif isinstance(frame, frames.GoAwayFrame):
            self.goaway = frame.error_code
        elif isinstance(frame, frames.SettingsFrame) and "ACK" not in frame.flags:
            self.agreed |= frame.settings
            self._encoder.header_table_size = min(4096, self.agreed.get(HEADER_TABLE_SIZE, 4096))
            await self.send(frames.SettingsFrame(0, flags=["ACK"]))
        return frame

    def _begin(self, frame: frames.HeadersFrame) -> None:
        fields = {str(name): str(value) for name, value in self._decoder.decode(frame.data)}
        stream = Stream(frame.stream_id, fields, self.agreed.get(INITIAL_WINDOW_SIZE, 65_535))
        self.streams[stream.id] = stream
        self._unread.append(stream)

    async def _go_on(self, stream: Stream, frame: frames.Frame, length: int) -> None:
        if isinstance(frame, frames.DataFrame):
            stream.body += frame.data
            if self.opens_window and length:
                await self.send(window(0, length), window(stream.id, length))
        elif isinstance(frame, frames.WindowUpdateFrame):
            stream.window += frame.window_increment
        elif isinstance(frame, frames.RstStreamFrame):
            stream.reset = frame.error_code
        if "END_STREAM" in frame.flags:
            stream.is_whole = True


def data(stream: int, body: bytes, *, end: bool = False) -> frames.Frame:
    """Return a frame of a body."""
    return frames.DataFrame(stream, body, flags=["END_STREAM"] if end else [])


def rst(stream: int, code: int) -> frames.Frame:
    """Return the frame that ends one stream."""
    return frames.RstStreamFrame(stream, code)


def goaway(last: int, code: int = NO_ERROR) -> frames.Frame:
    """Return the frame that ends the connection for every stream above `last`."""
    return frames.GoAwayFrame(0, last_stream_id=last, error_code=code)


def window(stream: int, size: int) -> frames.Frame:
    """Return the frame that lets the client send more."""
    return frames.WindowUpdateFrame(stream, size)
