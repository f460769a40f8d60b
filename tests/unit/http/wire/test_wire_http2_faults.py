"""What a service may not say on a connection of HTTP/2, and whom it costs what."""

import contextlib
import random
from collections.abc import Callable

import pytest
from hyperframe import frame as frames

from shared.infrastructure.http import RemoteProtocolViolationError
from shared.infrastructure.http.errors import UnprocessedError
from shared.infrastructure.http.wire.frames import Code, ConnectionFaultError
from tests.unit.http.wire.http2_said import Said, data

Says = Callable[[Said], "frames.Frame | bytes | list[frames.Frame | bytes]"]


def hears(said: Said, says: Says) -> None:
    spoken = says(said)
    said.hears(*(spoken if isinstance(spoken, list) else [spoken]))


def raw(kind: int, payload: bytes, *, stream: int = 0, flags: int = 0) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


BROKEN: dict[str, tuple[Code, Says]] = {
    "settings of five bytes": (Code.FRAME_SIZE_ERROR, lambda _: raw(4, b"12345")),
    "settings of a stream": (Code.PROTOCOL_ERROR, lambda _: raw(4, b"", stream=1)),
    "settings that agree and tell": (Code.FRAME_SIZE_ERROR, lambda _: raw(4, b"123456", flags=1)),
    "leave to push": (Code.PROTOCOL_ERROR, lambda _: frames.SettingsFrame(0, settings={2: 1})),
    "tiny frames": (Code.PROTOCOL_ERROR, lambda _: frames.SettingsFrame(0, settings={5: 100})),
    "window of 32 bits in the settings": (
        Code.FLOW_CONTROL_ERROR,
        lambda _: frames.SettingsFrame(0, settings={4: 2**31}),
    ),
    "settings that burst a window": (
        Code.FLOW_CONTROL_ERROR,
        lambda _: [
            frames.WindowUpdateFrame(1, 2**31 - 1 - 65_535),
            frames.SettingsFrame(0, settings={4: 65_536}),
        ],
    ),
    "frame too long": (Code.FRAME_SIZE_ERROR, lambda _: raw(0, bytes(16_385), stream=1)),
    "HTTP/1": (Code.PROTOCOL_ERROR, lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "push": (Code.PROTOCOL_ERROR, lambda _: raw(5, b"\0\0\0\2\x88", stream=1, flags=4)),
    "ping of seven bytes": (Code.FRAME_SIZE_ERROR, lambda _: raw(6, b"1234567")),
    "ping of a stream": (Code.PROTOCOL_ERROR, lambda _: raw(6, b"12345678", stream=1)),
    "goodbye of a stream": (Code.PROTOCOL_ERROR, lambda _: raw(7, bytes(8), stream=1)),
    "goodbye cut short": (Code.FRAME_SIZE_ERROR, lambda _: raw(7, b"1234")),
    "reset of no stream": (Code.PROTOCOL_ERROR, lambda _: raw(3, bytes(4))),
    "reset cut short": (Code.FRAME_SIZE_ERROR, lambda _: raw(3, b"123", stream=1)),
    "window opened by nothing": (Code.PROTOCOL_ERROR, lambda _: raw(8, bytes(4))),
    "window beyond 31 bits": (
        Code.FLOW_CONTROL_ERROR,
        lambda _: frames.WindowUpdateFrame(0, 2**31 - 1),
    ),
    "body of a stream never opened": (Code.PROTOCOL_ERROR, lambda _: data(99, b"x")),
    "body of a stream of the service": (Code.PROTOCOL_ERROR, lambda _: data(2, b"x")),
    "head of a stream never opened": (Code.PROTOCOL_ERROR, lambda said: said.head(99)),
    "padding longer than its frame": (
        Code.PROTOCOL_ERROR,
        lambda _: raw(0, b"\x05abc", stream=1, flags=8),
    ),
    "priority cut short": (Code.FRAME_SIZE_ERROR, lambda _: raw(1, b"abc", stream=1, flags=0x24)),
    "piece of no head": (Code.PROTOCOL_ERROR, lambda _: frames.ContinuationFrame(1, b"")),
    "piece of another head": (
        Code.PROTOCOL_ERROR,
        lambda _: [frames.HeadersFrame(1, b""), frames.ContinuationFrame(3, b"")],
    ),
    "frame within a head": (
        Code.PROTOCOL_ERROR,
        lambda _: [frames.HeadersFrame(1, b""), frames.PingFrame(0, bytes(8))],
    ),
    "head in pieces without end": (
        Code.ENHANCE_YOUR_CALM,
        lambda _: [frames.HeadersFrame(1, b""), *[frames.ContinuationFrame(1, b"")] * 100],
    ),
    "head that never ends": (
        Code.ENHANCE_YOUR_CALM,
        lambda _: [
            frames.HeadersFrame(1, b""),
            *[frames.ContinuationFrame(1, bytes(10_000))] * 10,
        ],
    ),
    "head that cannot be unpacked": (
        Code.COMPRESSION_ERROR,
        lambda _: frames.HeadersFrame(1, b"\xff\xff\xff", flags=["END_HEADERS"]),
    ),
    "head that unpacks to megabytes": (
        Code.ENHANCE_YOUR_CALM,
        lambda said: said.head(1, (":status", "200"), *[("x", "y" * 4000)] * 1000),
    ),
    "ten thousand pings": (
        Code.ENHANCE_YOUR_CALM,
        lambda _: frames.PingFrame(0, bytes(8)).serialize() * 10_001,
    ),
    "ten thousand settings": (
        Code.ENHANCE_YOUR_CALM,
        lambda _: frames.SettingsFrame(0).serialize() * 10_001,
    ),
    "ten thousand empty pieces": (
        Code.ENHANCE_YOUR_CALM,
        lambda said: [said.head(1), data(1).serialize() * 10_001],
    ),
    "ten thousand resets": (
        Code.ENHANCE_YOUR_CALM,
        lambda _: frames.RstStreamFrame(1, 8).serialize() * 10_002,
    ),
    "ten thousand unknown frames": (Code.ENHANCE_YOUR_CALM, lambda _: raw(99, b"") * 10_001),
    "ten thousand priorities": (
        Code.ENHANCE_YOUR_CALM,
        lambda _: raw(2, bytes(5), stream=1) * 10_001,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_leaves_no_common_ground_ends_the_connection(name: str) -> None:
    code, says = BROKEN[name]
    said = Said(2)
    with pytest.raises(ConnectionFaultError) as caught:
        hears(said, says)
    assert caught.value.code is code
    assert caught.value.words


@pytest.mark.parametrize(
    "first", [frames.PingFrame(0, bytes(8)), frames.SettingsFrame(0, flags=["ACK"])]
)
def test_a_service_begins_with_its_settings(first: frames.Frame) -> None:
    with pytest.raises(ConnectionFaultError, match="no settings to begin with"):
        Said(greeted=False).hears(first)


def answered(*fields: tuple[str, str], end: bool = False) -> Says:
    return lambda said: said.head(1, *fields, end=end)


STATUS = (":status", "200")
WRONG: dict[str, tuple[str, Says]] = {
    "body before its head": ("before its head", lambda _: data(1, b"x")),
    "end before the head": ("before its head", lambda _: data(1, end=True)),
    "no status": ("without a status", answered(("a", "b"))),
    "status at the end": ("without a status", answered(("a", "b"), STATUS)),
    "two of them": ("field that no answer", answered(STATUS, STATUS)),
    "status in words": ("status that is none", answered((":status", "ok"))),
    "status of two digits": ("status that is none", answered((":status", "20"))),
    "status of four": ("status that is none", answered((":status", "2000"))),
    "status of nothing": ("status that is none", answered((":status", "000"))),
    "another protocol": ("unexpected status 101", answered((":status", "101"))),
    "hints and no answer": ("unexpected status 103", answered((":status", "103"), end=True)),
    "name in upper case": ("field that no answer", answered(STATUS, ("Server", "x"))),
    "name with a space": ("field that no answer", answered(STATUS, ("a b", "x"))),
    "empty name": ("field that no answer", answered(STATUS, ("", "x"))),
    "field of a request": ("field that no answer", answered(STATUS, (":path", "/"))),
    "connection": ("field that no answer", answered(STATUS, ("connection", "close"))),
    "transfer-encoding": ("field that", answered(STATUS, ("transfer-encoding", "chunked"))),
    "line end in a field": ("line end", answered(STATUS, ("a", "b\r\nc: d"))),
    "NUL in a field": ("line end", answered(STATUS, ("a", "b\0"))),
    "length in words": ("length that is none", answered(STATUS, ("content-length", "x"))),
    "two lengths": (
        "length that is none",
        answered(STATUS, ("content-length", "1"), ("content-length", "2")),
    ),
    "too long a head": ("more than 16384", answered(STATUS, *[("x", "y" * 100)] * 150)),
    "hints without end": (
        "more than 16384",
        lambda said: [said.head(1, (":status", "103")) for _ in range(400)],
    ),
    "too many fields": ("more than 256", answered(STATUS, *[("x", "y")] * 300)),
    "body longer than its length": (
        "longer than its length",
        lambda said: [said.head(1, STATUS, ("content-length", "2")), data(1, b"four")],
    ),
    "body shorter than its length": (
        "shorter than its length",
        lambda said: [said.head(1, STATUS, ("content-length", "9")), data(1, b"four", end=True)],
    ),
    "no body where there is a length": (
        "shorter than its length",
        answered(STATUS, ("content-length", "9"), end=True),
    ),
    "body of a 204": ("none to be", lambda said: [said.head(1, (":status", "204")), data(1, b"x")]),
    "second head": ("second head", lambda said: [said.head(1), said.head(1)]),
    "window opened by nothing": ("opened by nothing", lambda _: raw(8, bytes(4), stream=1)),
    "window beyond 31 bits": (
        "beyond 31 bits",
        lambda _: frames.WindowUpdateFrame(1, 2**31 - 1),
    ),
    "more than its window": (
        "beyond its window",
        lambda said: [said.head(1), data(1, bytes(16_384)).serialize() * 65],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_one_stream_leaves_the_others_alone(name: str) -> None:
    words, says = WRONG[name]
    said = Said(2)
    hears(said, says)
    error = said.over[1]
    assert isinstance(error, RemoteProtocolViolationError)
    assert str(error).startswith("the answer is not valid HTTP/2: ")
    assert words in str(error)
    resets = [frame for frame in said.sent() if isinstance(frame, frames.RstStreamFrame)]
    assert [(frame.stream_id, frame.error_code != 0) for frame in resets] == [(1, True)]
    said.hears(said.head(1), data(1, b"late"), frames.RstStreamFrame(1, 0))
    said.hears(said.head(3), data(3, b"fine", end=True))
    assert (said.opened[1].answer.take(), said.over[3]) == (b"fine", None)


@pytest.mark.parametrize("seed", range(300))
def test_whatever_comes_in_a_connection_or_a_stream_is_at_fault(seed: int) -> None:
    rng = random.Random(seed)
    said = Said(3)
    spoken = b"".join(
        frame.serialize()
        for frame in (
            said.head(1, (":status", "200"), ("a", "b" * 20)),
            data(1, b"abc"),
            frames.SettingsFrame(0, settings={3: 10, 4: 70_000}),
            said.head(3, (":status", "103")),
            said.head(3, (":status", "404"), ("a", "b" * 20), end=True),
            frames.WindowUpdateFrame(5, 10),
            frames.PingFrame(0, bytes(8)),
            data(1, b"def", end=True),
            frames.RstStreamFrame(5, 2),
            frames.GoAwayFrame(0, last_stream_id=5),
        )
    )
    damaged = bytearray(spoken)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(damaged))
        if rng.random() < 0.5:
            damaged[at] = rng.randrange(256)
        else:
            del damaged[at]
    with contextlib.suppress(ConnectionFaultError):
        while damaged:
            size = rng.randrange(1, 60)
            said.hears(bytes(damaged[:size]))
            del damaged[:size]
    for error in said.over.values():
        assert isinstance(error, RemoteProtocolViolationError | UnprocessedError | None)
