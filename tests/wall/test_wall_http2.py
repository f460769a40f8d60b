"""HTTP/2: streams reset, connections ended, frames that are none, and answers that never end."""

from collections.abc import AsyncIterator
from typing import Any

from hyperframe import frame as frames

from shared.infrastructure.http import (
    ReadFailedError,
    ReadTimeoutError,
    RemoteProtocolViolationError,
    UnprocessedError,
)
from shared.infrastructure.resilience import AttemptTimeoutError, DeadlineExceededError
from tests.wall import h2_peer
from tests.wall.flavours import Flavour
from tests.wall.h2_peer import goaway, rst, window
from tests.wall.h2_site import (
    Made,
    body,
    fixed,
    floods,
    h2_site,
    hangs,
    head,
    resets,
    sends,
)
from tests.wall.row import Row, meet, on_every_flavour

VIOLATION, RESET = RemoteProtocolViolationError, ConnectionResetError
SOON = {"total": 0.3}
OK = (200, b"ok")
POST: Any = {"method": "POST", "body": lambda: b"order", "options": {"idempotency_keys": False}}
good = sends(head(), body(b"ok", end=True))


async def one_shot() -> AsyncIterator[bytes]:
    yield b"order"


def resets_stream(code: int) -> Made:
    return lambda _, stream: rst(stream, code)


def says_goodbye(last: int | None = None, code: int = h2_peer.NO_ERROR) -> Made:
    return lambda _, stream: goaway(stream if last is None else last, code)


REFUSED = sends(resets_stream(h2_peer.REFUSED_STREAM))
UNPROCESSED: list[Row[Any]] = [
    Row("stream refused once", (REFUSED, good), OK),
    Row("POST refused once", (REFUSED, good), OK, **POST),
    Row("stream always refused", REFUSED, UnprocessedError, seen=4, attempts=2),
    Row(
        "POST that cannot be sent again refused",
        REFUSED,
        UnprocessedError,
        seen=1,
        method="POST",
        body=one_shot,
    ),
    Row(
        "connection ended below our stream",
        (sends(says_goodbye(1), serves_on=False), good),
        OK,
        after=1,
    ),
    Row(
        "connection ended below the stream of a POST",
        (sends(says_goodbye(1), serves_on=False), good),
        OK,
        after=1,
        **POST,
    ),
    Row(
        "connection ended below any stream",
        (sends(says_goodbye(0), serves_on=False), good),
        OK,
        **POST,
    ),
    Row(
        "connection ended below a POST that cannot be sent again",
        sends(says_goodbye(1), serves_on=False),
        UnprocessedError,
        seen=1,
        after=1,
        method="POST",
        body=one_shot,
    ),
]

ENDED: list[Row[Any]] = [
    Row(
        f"stream reset {where} with {name}",
        sends(*made, resets_stream(code), each=True),
        VIOLATION,
    )
    for where, made in [("before the head", []), ("within the body", [head(), body(b"half")])]
    for name, code in {
        "INTERNAL_ERROR": h2_peer.INTERNAL_ERROR,
        "CANCEL": h2_peer.CANCEL,
        "ENHANCE_YOUR_CALM": h2_peer.ENHANCE_YOUR_CALM,
        "HTTP_1_1_REQUIRED": h2_peer.HTTP_1_1_REQUIRED,
    }.items()
] + [
    Row(
        "stream reset under a reader",
        sends(head(), body(b"half"), resets_stream(h2_peer.INTERNAL_ERROR), each=True),
        VIOLATION,
        seen=1,
        streamed=True,
    ),
    Row(
        "POST reset, perhaps processed",
        sends(resets_stream(h2_peer.INTERNAL_ERROR)),
        VIOLATION,
        seen=1,
        **POST,
    ),
    Row(
        "goodbye, answer, end",
        sends(says_goodbye(), head(), body(b"ok", end=True), serves_on=False),
        OK,
        seen=1,
    ),
    Row(
        "goodbye, then answer, then end",
        sends(says_goodbye(), head(), body(b"ok", end=True), serves_on=False, each=True),
        OK,
        seen=1,
    ),
    Row(
        "goodbye within the body",
        sends(head(), body(b"o"), says_goodbye(), body(b"k", end=True), serves_on=False, each=True),
        OK,
        seen=1,
    ),
    Row(
        "goodbye from here on, answer, end",
        sends(says_goodbye(2**31 - 1), head(), says_goodbye(), body(b"ok", end=True), each=True),
        OK,
        seen=1,
    ),
    Row(
        "connection ended with an error",
        sends(says_goodbye(code=h2_peer.INTERNAL_ERROR), serves_on=False),
        VIOLATION,
    ),
    Row("end before the head", sends(serves_on=False), VIOLATION),
    Row("end within the body", sends(head(), body(b"half"), serves_on=False), VIOLATION),
    Row("reset before the head", resets(), ReadFailedError, cause=RESET),
    Row("reset within the body", resets(head(), body(b"half")), ReadFailedError, cause=RESET),
]


def raw(data: bytes) -> Made:
    return lambda _peer, _stream: data


def bomb(peer: h2_peer.H2Peer, stream: int) -> frames.Frame:
    """Return a head of a few kB that unpacks to 4 MB."""
    return peer.headers(stream, (":status", "200"), *[("x", "y" * 4000)] * 1000, end=True)


def too_large(peer: h2_peer.H2Peer, stream: int) -> frames.Frame:
    agreed = peer.agreed.get(h2_peer.MAX_FRAME_SIZE, 16_384)
    return h2_peer.data(stream, bytes(agreed + 1))


def continued(_peer: h2_peer.H2Peer, stream: int) -> bytes:
    first = frames.HeadersFrame(stream, b"\x88").serialize()
    return first + frames.ContinuationFrame(stream, b"").serialize() * 200


def pings(_peer: h2_peer.H2Peer, _stream: int) -> bytes:
    return frames.PingFrame(0, b"12345678").serialize() * 1000


NONSENSE = [
    Row(
        "HTTP/1.1 where HTTP/2 was agreed on",
        sends(raw(b"HTTP/1.1 400 Bad\r\n\r\n"), serves_on=False),
        VIOLATION,
    ),
    Row("noise", sends(raw(bytes(range(256)) * 4)), VIOLATION),
    Row("body before the head", sends(body(b"half"), head()), VIOLATION),
    Row("body of a stream never opened", sends(fixed(h2_peer.data(99, b"half"))), VIOLATION),
    Row(
        "reset of a stream never opened, then an answer",
        sends(fixed(rst(99, 0)), head(), body(b"ok", end=True)),
        OK,
        seen=1,
    ),
    Row("head of a stream never opened", sends(lambda peer, _: head()(peer, 99)), VIOLATION),
    Row("settings of five bytes", sends(raw(b"\0\0\5\4\0\0\0\0\0" + b"12345")), VIOLATION),
    Row("ping of seven bytes", sends(raw(b"\0\0\7\6\0\0\0\0\0" + b"1234567")), VIOLATION),
    Row("frame beyond the size agreed on", sends(head(), too_large), VIOLATION),
    Row("window opened by nothing", sends(fixed(window(0, 0))), VIOLATION),
    Row("window beyond 31 bits", sends(*[fixed(window(0, 2**31 - 1))] * 2), VIOLATION),
    Row("push nobody wants", sends(raw(b"\0\0\5\5\4\0\0\0\1\0\0\0\2\x88")), VIOLATION),
    Row("fields that cannot be unpacked", sends(raw(b"\0\0\1\1\4\0\0\0\1\xff")), VIOLATION),
    Row("20,000 pings at once", sends(*[pings] * 20), VIOLATION),
    Row("fields that unpack to megabytes", sends(bomb), VIOLATION),
    Row("head in 200 pieces", sends(continued), VIOLATION),
    Row(
        "body longer than its length",
        sends(head(200, ("content-length", "2")), body(b"four", end=True)),
        VIOLATION,
    ),
    Row(
        "body shorter than its length",
        sends(head(200, ("content-length", "9")), body(b"half", end=True)),
        VIOLATION,
    ),
    Row(
        "head without a status",
        sends(lambda peer, stream: peer.headers(stream, ("a", "b"), end=True)),
        VIOLATION,
    ),
    Row(
        "status that is no number",
        sends(lambda peer, stream: peer.headers(stream, (":status", "ok"), end=True)),
        VIOLATION,
    ),
]

SILENT = {"read": 0.1}
SLOW = [
    Row("silence after the request", hangs, ReadTimeoutError, limits=SILENT),
    Row("silence after the head", sends(head()), ReadTimeoutError, limits=SILENT),
    Row(
        "body a byte at a time",
        floods(head(), with_what=body(b"x"), every=0.02),
        DeadlineExceededError,
        seen=1,
        limits=SOON,
    ),
    Row(
        "body a byte at a time, attempts bounded",
        floods(head(), with_what=body(b"x"), every=0.02),
        AttemptTimeoutError,
        limits={"attempt": 0.2},
    ),
    Row(
        "flood of pings",
        floods(with_what=fixed(frames.PingFrame(0, b"12345678"))),
        DeadlineExceededError,
        seen=1,
        limits=SOON,
    ),
    Row(
        "flood of settings",
        floods(with_what=fixed(frames.SettingsFrame(0))),
        DeadlineExceededError,
        seen=1,
        limits=SOON,
    ),
    Row(
        "flood of empty pieces",
        floods(head(), with_what=body(b"")),
        DeadlineExceededError,
        seen=1,
        limits=SOON,
    ),
    Row("silence under a deadline", hangs, DeadlineExceededError, seen=1, limits=SOON),
]


@on_every_flavour(UNPROCESSED + ENDED + NONSENSE + SLOW)
async def test_a_broken_or_endless_answer_is_a_typed_error(row: Row[Any], flavour: Flavour) -> None:
    plays = row.play if isinstance(row.play, tuple) else (row.play,)
    await meet(row, flavour, h2_site(*plays))
