"""A session that hears what a test says in its service's place."""

from __future__ import annotations

from typing import Any

import hpack
from hyperframe import frame as frames

from shared.infrastructure.http.errors import UpstreamError
from shared.infrastructure.http.wire.frames import PREFACE
from shared.infrastructure.http.wire.http2_head import Http2Answer, encode_http2_head
from shared.infrastructure.http.wire.http2_session import Session
from shared.infrastructure.http.wire.http2_stream import Stream
from shared.infrastructure.testing import FakeClock

MAX_HEAD = 16_384


class NoCarrier:
    """Stands where the connection of a stream would."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


class Said:
    """A session with what it told, and a service that can say anything to it.

    Attributes:
        over: Streams that are over, and why.
        changes: How often places were to be looked at again.
    """

    def __init__(self, streams: int = 0, *, greeted: bool = True) -> None:
        self.clock = FakeClock()
        self.over: dict[int, UpstreamError | None] = {}
        self.changes = 0
        self._encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.session = Session(self._events(), MAX_HEAD, self.clock)
        self.session.start()
        if greeted:
            self.hears(frames.SettingsFrame(0))
        self.opened = [self.open() for _ in range(streams)]
        self.sent()

    def _events(self) -> Any:
        said = self

        class Events:
            def over(self, stream: Stream, error: UpstreamError | None) -> None:
                stream.end(error)
                said.over[stream.number] = error

            def changed(self) -> None:
                said.changes += 1

        return Events()

    def open(self, method: bytes = b"GET", *, ends: bool = True, **fields: str) -> Stream:
        answer = Http2Answer(bodiless=method == b"HEAD", max_head=MAX_HEAD)
        stream = Stream(answer, NoCarrier())
        headers = [(name.encode(), value.encode()) for name, value in fields.items()]
        head = encode_http2_head(method, b"/x", b"a.test", headers)
        self.session.open(stream, head.fields, ends=ends)
        return stream

    def hears(self, *said: frames.Frame | bytes) -> None:
        data = b"".join(one if isinstance(one, bytes) else one.serialize() for one in said)
        self.session.receive(data)

    def head(self, stream: int, *fields: tuple[str, str], end: bool = False) -> frames.Frame:
        """Return the frame of an answer's head, of status 200 if no fields are given."""
        block = self._encoder.encode(fields or [(":status", "200")])
        flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        return frames.HeadersFrame(stream, block, flags=flags)

    def block(self, *fields: tuple[str, str]) -> bytes:
        return self._encoder.encode(fields)

    def sent(self) -> list[frames.Frame]:
        """Return the frames sent since the last time."""
        data = b"".join(self.session.out).removeprefix(PREFACE)
        self.session.out.clear()
        found = []
        while data:
            frame, length = frames.Frame.parse_frame_header(memoryview(data[:9]))
            frame.parse_body(memoryview(data[9 : 9 + length]))
            found.append(frame)
            data = data[9 + length :]
        return found


def data(stream: int, body: bytes = b"", *, end: bool = False) -> frames.Frame:
    return frames.DataFrame(stream, body, flags=["END_STREAM"] if end else [])
