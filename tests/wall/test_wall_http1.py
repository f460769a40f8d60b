"""HTTP/1.1: connections that break, answers that are none, and answers that never end."""

from typing import Any

from shared.infrastructure.http import (
    ReadFailedError,
    ReadTimeoutError,
    RemoteProtocolViolationError,
)
from shared.infrastructure.resilience import AttemptTimeoutError, DeadlineExceededError
from tests.local_tls import server_tls
from tests.wall.flavours import Flavour
from tests.wall.h1_site import HEAD, Play, bytes_of, drips, endless, h1_site, says, with_length
from tests.wall.row import Row, meet, on_every_flavour

CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
EVENTS = HEAD + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
HALF = HEAD + b"Content-Length: 9\r\n\r\nhalf"
H2_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
GOOD = with_length(b"fine")
SOON = {"total": 0.3}
READ, VIOLATION = ReadFailedError, RemoteProtocolViolationError
RESET = ConnectionResetError


def without_keys(**options: Any) -> dict[str, Any]:
    return {"idempotency_keys": False, **options}


BREAKS = [
    Row("reset before the head", says(then="reset"), READ, cause=RESET),
    Row("reset within the head", says(HEAD, then="reset"), READ, cause=RESET),
    Row("reset after the head", says(HALF[:-4], then="reset"), READ, cause=RESET),
    Row("reset within the body", says(HALF, then="reset"), READ, cause=RESET),
    Row(
        "reset of a POST that may have been processed",
        says(then="reset"),
        READ,
        seen=1,
        cause=RESET,
        method="POST",
        body=lambda: b"order",
        options=without_keys(),
    ),
    Row("end before the head", says(), VIOLATION),
    Row("end within the head", says(HEAD), VIOLATION),
    Row("body shorter than its length", says(HALF), VIOLATION),
    Row("chunks without an end", says(CHUNKED + b"5\r\nhello\r\n"), VIOLATION),
    Row("end within a chunk", says(CHUNKED + b"9\r\nhello"), VIOLATION),
    Row("end within the length of a chunk", says(CHUNKED + b"5"), VIOLATION),
    Row("event stream cut off", says(EVENTS, b"b\r\ndata: one\n\n\r\n"), VIOLATION),
    Row(
        "event stream cut off under a reader",
        says(EVENTS, b"b\r\ndata: one\n\n\r\n"),
        VIOLATION,
        seen=1,
        streamed=True,
    ),
    Row(
        "event stream reset under a reader",
        says(EVENTS, b"b\r\ndata: one\n\n\r\n", then="reset"),
        READ,
        seen=1,
        cause=RESET,
        streamed=True,
    ),
]

NONSENSE = [
    Row("no status code", says(b"HTTP/1.1 OK\r\n\r\n"), VIOLATION),
    Row("two digits of status", says(b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"), VIOLATION),
    Row("status of no class", says(b"HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n"), VIOLATION),
    Row("switch nobody asked for", says(b"HTTP/1.1 101 OK\r\nUpgrade: x\r\n\r\n"), VIOLATION),
    Row("version of the future", says(b"HTTP/3.0 200 OK\r\n\r\n"), VIOLATION),
    Row("no version, as in HTTP/0.9", says(b"<html>hello</html>"), VIOLATION),
    Row("another protocol", says(b"SSH-2.0-OpenSSH_9.2\r\n"), VIOLATION),
    Row("noise", says(bytes(range(256)) * 4), VIOLATION),
    Row("HTTP/2 where HTTP/1.1 was spoken", says(H2_SETTINGS, then="hang"), VIOLATION),
    Row("two lengths", says(HEAD + b"Content-Length: 1\r\n" + GOOD[17:]), VIOLATION),
    Row("negative length", says(HEAD + b"Content-Length: -1\r\n\r\n"), VIOLATION),
    Row("length with a sign", says(HEAD + b"Content-Length: +2\r\n\r\nok"), VIOLATION),
    Row("length beyond 64 bits", says(HEAD + b"Content-Length: 9%030d\r\n\r\n" % 0), VIOLATION),
    Row("length and chunks", says(CHUNKED[:-2] + GOOD[17:]), VIOLATION),
    Row("coding twice", says(CHUNKED[:-2] + CHUNKED[17:] + b"0\r\n\r\n"), VIOLATION),
    Row("coding nobody asked for", says(CHUNKED.replace(b": ", b": gzip, ")), VIOLATION),
    Row("length of a chunk is no number", says(CHUNKED + b"xyz\r\nhello\r\n0\r\n\r\n"), VIOLATION),
    Row("chunk longer than its length", says(CHUNKED + b"2\r\nhello\r\n0\r\n\r\n"), VIOLATION),
    Row("length of a chunk beyond 64 bits", says(CHUNKED + b"f" * 17 + b"\r\n"), VIOLATION),
    Row("field folded over two lines", says(HEAD + b"X: a\r\n b\r\n" + GOOD[17:]), VIOLATION),
    Row("NUL in a field", says(HEAD + b"X: a\0b\r\n" + GOOD[17:]), VIOLATION),
    Row("space before the colon", says(HEAD + b"Content-Length : 2\r\n\r\nok"), VIOLATION),
    Row("field without a name", says(HEAD + b": x\r\n" + GOOD[17:]), VIOLATION),
    Row("field without a colon", says(HEAD + b"nonsense\r\n" + GOOD[17:]), VIOLATION),
]

ENDLESS = [
    Row("head of 100 kB", says(HEAD + b"X: %b\r\n\r\n" % (b"x" * 100_000)), VIOLATION),
    Row("fields without end", endless(HEAD, b"X: y\r\n" * 1000), VIOLATION),
    Row("value without end", endless(HEAD + b"X: ", b"x" * 10_000), VIOLATION),
    Row("1xx without end", endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), VIOLATION),
    Row("reason without end", endless(b"HTTP/1.1 200 ", b"OK" * 1000), VIOLATION),
    Row("chunk extension without end", endless(CHUNKED + b"5;", b"x" * 10_000), VIOLATION),
    Row("trailers without end", endless(CHUNKED + b"0\r\n", b"X: y\r\n" * 1000), VIOLATION),
]

SLOW = [
    Row(
        "silence after the request",
        says(then="hang"),
        ReadTimeoutError,
        limits={"read": 0.1},
    ),
    Row(
        "silence within the head",
        says(HEAD, then="hang"),
        ReadTimeoutError,
        limits={"read": 0.1},
    ),
    Row(
        "silence after the head",
        says(HALF[:-4], then="hang"),
        ReadTimeoutError,
        limits={"read": 0.1},
    ),
    Row(
        "silence within the body",
        says(HALF, then="hang"),
        ReadTimeoutError,
        limits={"read": 0.1},
    ),
    Row(
        "silence under a reader",
        says(HALF, then="hang"),
        ReadTimeoutError,
        seen=1,
        limits={"read": 0.1},
        streamed=True,
    ),
    Row(
        "head a byte at a time",
        drips(bytes_of(with_length(b"x" * 1000)), 0.02),
        DeadlineExceededError,
        seen=1,
        limits=SOON,
    ),
    Row(
        "body a byte at a time",
        endless(HALF[:-4].replace(b"9", b"9999"), b"x", 0.02),
        DeadlineExceededError,
        seen=1,
        limits=SOON,
    ),
    Row(
        "body a byte at a time, attempts bounded",
        endless(HALF[:-4].replace(b"9", b"9999"), b"x", 0.02),
        AttemptTimeoutError,
        limits={"attempt": 0.2},
    ),
    Row(
        "1xx now and then",
        endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n", 0.02),
        DeadlineExceededError,
        seen=1,
        limits=SOON,
    ),
    Row(
        "silence under a deadline",
        says(then="hang"),
        DeadlineExceededError,
        seen=1,
        limits=SOON,
    ),
]


@on_every_flavour(BREAKS + NONSENSE + ENDLESS + SLOW)
async def test_a_broken_or_endless_answer_is_a_typed_error(
    row: Row[Play], flavour: Flavour
) -> None:
    await meet(row, flavour, h1_site(row.play))


@on_every_flavour(BREAKS)
async def test_it_is_one_where_http2_was_offered_as_well(row: Row[Play], flavour: Flavour) -> None:
    await meet(row, flavour, h1_site(row.play, tls=server_tls("http/1.1")))
