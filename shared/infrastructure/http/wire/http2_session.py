"""What is said on a connection of HTTP/2: frames in, frames out, and the streams in between."""

from __future__ import annotations

from typing import Protocol, cast

from hpack import Decoder, Encoder, HPACKError, OversizedHeaderListError

from shared.infrastructure.http.errors import (
    RemoteProtocolViolationError,
    UnprocessedError,
    UpstreamError,
)
from shared.infrastructure.http.wire import frames
from shared.infrastructure.http.wire.frames import (
    Code,
    ConnectionFaultError,
    FrameReader,
    StreamFaultError,
)
from shared.infrastructure.http.wire.http2_head import Fields
from shared.infrastructure.http.wire.http2_stream import STREAM_WINDOW, Stream
from shared.infrastructure.resilience import Clock

# What may be on its way to us on all streams together. It is granted anew as it arrives: who does
# not read has its own window full, and nobody else's.
_WINDOW = 16 * 1024 * 1024
_DEFAULT_WINDOW = 65_535
_DEFAULT_TABLE = 4096
_UNLIMITED = 2**31
# Frames that help no stream, in so many seconds: more are an attack.
_MAX_IDLE_TALK = 10_000
_IDLE_TALK_SECONDS = 10.0
# Of a head that is too long so much more is read: unpacked, it harms one stream, else them all.
_HEAD_SLACK = 2
_MAX_PIECES = 64


class Events(Protocol):
    """What the session tells."""

    def over(self, stream: Stream, error: UpstreamError | None, /) -> None:
        """Part from a stream that is complete, or has failed."""
        ...

    def changed(self) -> None:
        """Look again at `max_streams` and `is_draining`."""
        ...


class Session:
    """The client's end of a connection, without its socket.

    Args:
        events: Told what becomes of streams.
        max_head: Bytes that the head of an answer may have.
        clock: Source of monotonic time.

    Attributes:
        streams: Exchanges under way, by number.
        out: What is to be sent, in order.
        max_streams: Exchanges that may be under way; 1 until the service has said.
        is_draining: No more can be opened.
        goodbye: Why the service ends the connection, if it has said so.
    """

    def __init__(self, events: Events, max_head: int, clock: Clock) -> None:
        self.streams: dict[int, Stream] = {}
        self.out: list[bytes | memoryview] = []
        self.max_streams = 1
        self.is_draining = False
        self.goodbye = ""
        self._events = events
        self._max_head = max_head
        self._clock = clock
        self._reader = FrameReader()
        self._encoder = Encoder()
        self._decoder = Decoder(max_head * _HEAD_SLACK)
        self._is_greeted = False
        self._next = 1
        self._window = self._initial_window = _DEFAULT_WINDOW
        self._granted = _WINDOW
        # The stream, flags and pieces of a head that is not complete.
        self._head: tuple[int, int, list[bytes]] | None = None
        self._idle_talk = 0
        self._idle_since = 0.0
        self._handlers = (
            *(self._data, self._headers, self._priority, self._rst_stream, self._settings),
            *(self._push_promise, self._ping, self._goaway, self._window_update),
            self._continuation,
        )

    def start(self) -> None:
        """Say what comes before everything else."""
        own = {
            frames.ENABLE_PUSH: 0,
            frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            frames.MAX_HEADER_LIST_SIZE: self._max_head,
        }
        more = frames.window_update(0, _WINDOW - _DEFAULT_WINDOW)
        self.out += [frames.PREFACE, frames.settings(own), more]

    def open(self, stream: Stream, fields: Fields, *, ends: bool) -> None:
        """Send the head of a request; `ends` says that it has no body."""
        number = stream.number = self._next
        self._next += 2
        if self._next > frames.MAX_STREAM:
            self.is_draining = True
            self._events.changed()
        stream.window = self._initial_window
        stream.has_ended = ends
        self.streams[number] = stream
        block = self._encoder.encode(fields, huffman=False)
        self.out.append(frames.headers(number, block, ends=ends))

    def room(self, stream: Stream) -> int:
        """Return how many bytes can be sent on a stream now, in one frame."""
        return min(stream.window, self._window, frames.MAX_PAYLOAD)

    def send(self, stream: Stream, data: bytes | memoryview, *, ends: bool) -> None:
        """Send a piece of the body of a request, for which there is room."""
        size = len(data)
        stream.window -= size
        self._window -= size
        stream.has_ended = ends
        self._idle_talk = 0
        flags = frames.END_STREAM if ends else 0
        self.out += [frames.frame_head(frames.DATA, flags, stream.number, size), data]

    def queue_last(self, stream: Stream) -> None:
        """Let the others go first when there is room again."""
        self.streams[stream.number] = self.streams.pop(stream.number)

    def read_on(self, stream: Stream) -> None:
        """Let the service send more, now that what it sent has been read."""
        if size := stream.grant():
            self.out.append(frames.window_update(stream.number, size))

    def reset(self, stream: Stream, code: Code = Code.CANCEL) -> None:
        """End a stream; whatever still comes on it is dropped."""
        del self.streams[stream.number]
        self.out.append(frames.rst_stream(stream.number, code))

    def receive(self, data: bytes) -> None:
        """Take what the service sends.

        Raises:
            ConnectionFaultError: It is not HTTP/2; no stream can go on.
        """
        handlers = self._handlers
        for kind, flags, number, payload in self._reader.feed(data):
            if self._head is not None and kind != frames.CONTINUATION:
                raise ConnectionFaultError("a frame within a head")
            if not self._is_greeted and (kind != frames.SETTINGS or flags & frames.ACK):
                raise ConnectionFaultError("no settings to begin with")
            if kind >= len(handlers):
                self._count_idle_talk()
                continue
            try:
                handlers[kind](flags, number, payload)
            except StreamFaultError as fault:
                if stream := self.streams.get(number):
                    self.reset(stream, fault.code)
                    self._events.over(stream, _violation(fault.words))

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._granted -= size
        if self._granted < 0:
            raise ConnectionFaultError("more than the window", Code.FLOW_CONTROL_ERROR)
        if self._granted < _WINDOW // 2:
            self.out.append(frames.window_update(0, _WINDOW - self._granted))
            self._granted = _WINDOW
        if flags & frames.PADDED:
            payload = frames.unpadded(payload)
        stream = self._known(number)
        if stream is None:
            return
        stream.receive(payload, size)
        if flags & frames.END_STREAM:
            self._finish(stream)
        elif payload:
            self._idle_talk = 0
            stream.wake_reader()
        else:
            self._count_idle_talk()

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        if flags & frames.PADDED:
            payload = frames.unpadded(payload)
        if flags & frames.WITH_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFaultError("a head cut short", Code.FRAME_SIZE_ERROR)
            payload = payload[5:]
        if flags & frames.END_HEADERS:
            self._whole_head(flags, number, payload)
        else:
            self._head = (number, flags, [payload])

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._head is None or self._head[0] != number:
            raise ConnectionFaultError("a piece of no head")
        _, first, pieces = self._head
        pieces.append(payload)
        size = sum(map(len, pieces))
        if len(pieces) > _MAX_PIECES or size > self._max_head * _HEAD_SLACK:
            raise ConnectionFaultError("a head without end", Code.ENHANCE_YOUR_CALM)
        if flags & frames.END_HEADERS:
            self._head = None
            self._whole_head(first, number, b"".join(pieces))

    def _whole_head(self, flags: int, number: int, block: bytes) -> None:
        try:
            # Always: the fields of a head may refer to those of any before it.
            fields = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError:
            words = f"the head of an answer has more than {self._max_head} bytes"
            raise ConnectionFaultError(words, Code.ENHANCE_YOUR_CALM) from None
        except (HPACKError, IndexError) as exc:
            words = "a head that cannot be unpacked"
            raise ConnectionFaultError(words, Code.COMPRESSION_ERROR) from exc
        stream = self._known(number)
        if stream is None:
            return
        ends = bool(flags & frames.END_STREAM)
        stream.answer.feed_head(cast("list[tuple[bytes, bytes]]", fields), ends=ends)
        if ends:
            self._finish(stream)
        elif stream.answer.status:
            self._idle_talk = 0
            stream.wake()
        else:
            stream.wake_reader()

    def _finish(self, stream: Stream) -> None:
        stream.answer.feed_end()
        self._idle_talk = 0
        if stream.has_ended:
            del self.streams[stream.number]
        else:  # nobody waits for the rest of the request
            self.reset(stream)
        self._events.over(stream, None)

    def _priority(self, _flags: int, _number: int, _payload: bytes) -> None:
        self._count_idle_talk()

    def _rst_stream(self, _flags: int, number: int, payload: bytes) -> None:
        code = frames.word_of(payload)
        if not number:
            raise ConnectionFaultError("a reset of no stream")
        stream = self.streams.pop(number, None)
        if stream is None:
            self._count_idle_talk()
        elif code == Code.REFUSED_STREAM and not stream.answer.has_begun:
            self._events.over(stream, UnprocessedError("the service refused the stream"))
        else:
            words = f"the service reset the stream with {frames.name_of(code)}"
            self._events.over(stream, RemoteProtocolViolationError(words))

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFaultError("settings of a stream")
        self._count_idle_talk()
        if flags & frames.ACK:
            if payload:
                raise ConnectionFaultError("settings that agree and tell", Code.FRAME_SIZE_ERROR)
            return
        if not self._is_greeted:
            self._is_greeted = True
            self.max_streams = _UNLIMITED
        for key, value in frames.settings_of(payload):
            self._set(key, value)
        self.out.append(frames.settings_ack())
        self._events.changed()

    def _set(self, key: int, value: int) -> None:
        if key == frames.HEADER_TABLE_SIZE:
            self._encoder.header_table_size = min(value, _DEFAULT_TABLE)
        elif key == frames.ENABLE_PUSH and value:
            raise ConnectionFaultError("a service that wants to be pushed to")
        elif key == frames.MAX_CONCURRENT_STREAMS:
            self.max_streams = value
        elif key == frames.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                raise ConnectionFaultError("a window beyond 31 bits", Code.FLOW_CONTROL_ERROR)
            change, self._initial_window = value - self._initial_window, value
            try:
                for stream in self.streams.values():
                    stream.open_window(change)
            except StreamFaultError as fault:
                raise ConnectionFaultError(fault.words, fault.code) from None
        elif key == frames.MAX_FRAME_SIZE and not frames.MAX_PAYLOAD <= value < 2**24:
            raise ConnectionFaultError("a size that no frame can have")

    def _push_promise(self, _flags: int, _number: int, _payload: bytes) -> None:
        raise ConnectionFaultError("a push that nobody wants")

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFaultError("a ping of a stream")
        if len(payload) != 8:
            raise ConnectionFaultError("a ping of the wrong size", Code.FRAME_SIZE_ERROR)
        self._count_idle_talk()
        if not flags & frames.ACK:
            self.out.append(frames.ping_ack(payload))

    def _goaway(self, _flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFaultError("a goodbye of a stream")
        self._count_idle_talk()
        last, code = frames.goaway_of(payload)
        self.goodbye = frames.name_of(code)
        self.is_draining = True
        for stream in [stream for stream in self.streams.values() if stream.number > last]:
            del self.streams[stream.number]
            words = f"the service ended the connection before the request, with {self.goodbye}"
            self._events.over(stream, UnprocessedError(words))
        self._events.changed()

    def _window_update(self, _flags: int, number: int, payload: bytes) -> None:
        size = frames.word_of(payload) & frames.MAX_WINDOW
        self._count_idle_talk()
        if number:
            stream = self._known(number)
            if stream is not None:
                if not size:
                    raise StreamFaultError("a window opened by nothing")
                stream.open_window(size)
            return
        self._window += size
        if not size:
            raise ConnectionFaultError("a window opened by nothing")
        if self._window > frames.MAX_WINDOW:
            raise ConnectionFaultError("a window beyond 31 bits", Code.FLOW_CONTROL_ERROR)
        for stream in self.streams.values():
            stream.wake_writer()

    def _known(self, number: int) -> Stream | None:
        """Return a stream that is open, None for one that was.

        Raises:
            ConnectionFaultError: It never was.
        """
        stream = self.streams.get(number)
        if stream is None:
            if not number & 1 or number >= self._next:
                raise ConnectionFaultError("a frame of a stream that was never opened")
            self._count_idle_talk()
        return stream

    def _count_idle_talk(self) -> None:
        """Bear with frames that help no stream, up to a point."""
        self._idle_talk += 1
        if self._idle_talk == 1:
            self._idle_since = self._clock.now()
        elif self._idle_talk > _MAX_IDLE_TALK:
            if self._clock.now() - self._idle_since < _IDLE_TALK_SECONDS:
                raise ConnectionFaultError("talk that helps nobody", Code.ENHANCE_YOUR_CALM)
            self._idle_talk = 0


def _violation(words: str) -> RemoteProtocolViolationError:
    return RemoteProtocolViolationError(f"the answer is not valid HTTP/2: {words}")
