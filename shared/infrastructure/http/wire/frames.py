"""Frames of HTTP/2: out of bytes and into bytes; what they mean is said elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# RFC 9113, section 6.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

# Section 6.5.2.
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6

MAX_PAYLOAD = 16_384
"""Bytes that every peer has to take in one frame: we neither send nor accept more."""
MAX_WINDOW = 2**31 - 1
MAX_STREAM = 2**31 - 1

_HEAD = Struct(">IBI")
_WORD = Struct(">I")
_SETTING = Struct(">HI")
_GOAWAY = Struct(">II")
_HEAD_SIZE = 9


class Code(IntEnum):
    """Why a stream or a connection ends: RFC 9113, section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class FaultError(Exception):
    """The peer did what HTTP/2 does not allow.

    Attributes:
        code: What the peer is told.
        words: What our side is told.
    """

    def __init__(self, words: str, code: Code = Code.PROTOCOL_ERROR) -> None:
        super().__init__(words)
        self.words = words
        self.code = code


class StreamFaultError(FaultError):
    """It concerns one stream: the others go on."""


class ConnectionFaultError(FaultError):
    """The two sides may no longer mean the same by what they say: no stream can go on."""


class FrameReader:
    """Cuts the bytes of a connection into frames."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield the frames that are complete: type, flags, stream, payload.

        Raises:
            ConnectionFaultError: One is longer than agreed on.
        """
        if self._rest:
            data = self._rest + data
        start, end = 0, len(data)
        while end - start >= _HEAD_SIZE:
            word, flags, stream = _HEAD.unpack_from(data, start)
            stop = start + _HEAD_SIZE + (word >> 8)
            if stop - start > MAX_PAYLOAD + _HEAD_SIZE:
                if data[start : start + 5] == b"HTTP/":
                    raise ConnectionFaultError("HTTP/1 where HTTP/2 was agreed on")
                raise ConnectionFaultError(
                    "a frame beyond the size agreed on", Code.FRAME_SIZE_ERROR
                )
            if stop > end:
                break
            yield word & 0xFF, flags, stream & MAX_STREAM, data[start + _HEAD_SIZE : stop]
            start = stop
        self._rest = data[start:]


def frame_head(kind: int, flags: int, stream: int, size: int) -> bytes:
    """Return the first bytes of a frame, to be followed by `size` bytes of payload."""
    return _HEAD.pack(size << 8 | kind, flags, stream)


def settings(values: dict[int, int]) -> bytes:
    """Return the frame that tells our settings."""
    payload = b"".join(_SETTING.pack(key, value) for key, value in values.items())
    return frame_head(SETTINGS, 0, 0, len(payload)) + payload


def settings_of(payload: bytes) -> list[tuple[int, int]]:
    """Return the settings in the payload of a frame.

    Raises:
        ConnectionFaultError: It has not the length that settings have.
    """
    if len(payload) % _SETTING.size:
        raise ConnectionFaultError("settings cut short", Code.FRAME_SIZE_ERROR)
    return list(_SETTING.iter_unpack(payload))


def settings_ack() -> bytes:
    """Return the frame that agrees to the settings of the peer."""
    return frame_head(SETTINGS, ACK, 0, 0)


def ping_ack(payload: bytes) -> bytes:
    """Return the answer to a ping."""
    return frame_head(PING, ACK, 0, len(payload)) + payload


def rst_stream(stream: int, code: Code) -> bytes:
    """Return the frame that ends one stream."""
    return frame_head(RST_STREAM, 0, stream, 4) + _WORD.pack(code)


def window_update(stream: int, size: int) -> bytes:
    """Return the frame that lets the peer send `size` bytes more."""
    return frame_head(WINDOW_UPDATE, 0, stream, 4) + _WORD.pack(size)


def goaway(code: Code) -> bytes:
    """Return the frame that says goodbye; a client has taken no stream of its peer."""
    return frame_head(GOAWAY, 0, 0, _GOAWAY.size) + _GOAWAY.pack(0, code)


def word_of(payload: bytes) -> int:
    """Return the one number that is the payload of a frame, without its reserved bit.

    Raises:
        ConnectionFaultError: It has not the length of one.
    """
    if len(payload) != _WORD.size:
        raise ConnectionFaultError("a frame of the wrong size", Code.FRAME_SIZE_ERROR)
    return int.from_bytes(payload, "big")


def goaway_of(payload: bytes) -> tuple[int, int]:
    """Return the last stream that the peer may have processed, and its reason."""
    if len(payload) < _GOAWAY.size:
        raise ConnectionFaultError("a goodbye cut short", Code.FRAME_SIZE_ERROR)
    last, code = _GOAWAY.unpack_from(payload)
    return last & MAX_STREAM, code


def headers(stream: int, block: bytes, *, ends: bool) -> bytes:
    """Return the frames of a block of header fields; `ends` says that no body follows."""
    flags = END_STREAM if ends else 0
    if len(block) <= MAX_PAYLOAD:
        return frame_head(HEADERS, flags | END_HEADERS, stream, len(block)) + block
    pieces = [block[at : at + MAX_PAYLOAD] for at in range(0, len(block), MAX_PAYLOAD)]
    out = [frame_head(HEADERS, flags, stream, MAX_PAYLOAD), pieces[0]]
    for piece in pieces[1:-1]:
        out += [frame_head(CONTINUATION, 0, stream, len(piece)), piece]
    out += [frame_head(CONTINUATION, END_HEADERS, stream, len(pieces[-1])), pieces[-1]]
    return b"".join(out)


def unpadded(payload: bytes) -> bytes:
    """Return what is in a padded frame.

    Raises:
        ConnectionFaultError: There is more padding than frame.
    """
    if not payload or payload[0] >= len(payload):
        raise ConnectionFaultError("padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def name_of(code: int) -> str:
    """Return the name of an error code of the peer."""
    return Code(code).name if code in Code._value2member_map_ else f"error {code}"
