import time
import tracemalloc
from typing import Any

import pytest
from process_wire import BODY, LIVE, POST

from shared.infrastructure.server.config import ServerConfig
from shared.infrastructure.server.messages import HTTPError, Reply, Request, json_reply
from shared.infrastructure.server.reader import BodyCount, RequestReader

CHUNKED = POST.removesuffix(BODY).replace(b"Content-Length: 14", b"Transfer-Encoding: chunked")
UPGRADE = b"Host: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA"


class Doorkeeper:
    """Lets everybody in but those who have nothing to look for, and counts refusals."""

    def __init__(self) -> None:
        self.config = ServerConfig()
        self.refusals: list[int] = []

    def refuse(self, request: Request) -> Reply | None:
        if request.path != "/nothing":
            return None
        return self.failed(request, HTTPError(404, "nothing"))

    def failed(self, request: Request, error: Exception) -> Reply:
        assert isinstance(error, HTTPError)
        self.refusals.append(error.status)
        return json_reply({}, error.status)


class Reading:
    def __init__(self) -> None:
        self.door, self.bodies = Doorkeeper(), BodyCount()
        self.reader = RequestReader(self.door, self.bodies, time.monotonic)

    def all(self, *pieces: bytes) -> list[tuple[str, bytes, int | None]]:
        for piece in pieces:
            self.reader.feed(piece)
        return [
            (each.request.path, each.request.body, each.refusal and each.refusal.status)
            for each in self.reader.ready
        ]


@pytest.mark.parametrize("start", [b"0\r\nx: ", b"2;x="])
def test_what_surrounds_a_chunked_body_is_bounded(start: bytes) -> None:
    pieces = [CHUNKED + start, *[b"y" * 10_000] * 10]
    assert [refusal for _, _, refusal in Reading().all(*pieces)] == [431]


def test_framing_of_a_body_in_small_chunks_is_not_taken_for_trailers() -> None:
    reading = Reading()
    chunks = b"400\r\n" + b"x" * 1024 + b"\r\n"
    ((_, body, refusal),) = reading.all(CHUNKED, *[chunks] * 20_000, b"0\r\nx: y\r\n\r\n")
    assert (len(body), refusal) == (1024 * 20_000, None)


def test_a_body_costs_no_more_for_coming_in_tiny_chunks() -> None:
    reading = Reading()
    reading.reader.feed(CHUNKED)
    tracemalloc.start()
    for _ in range(16):
        reading.reader.feed(b"2\r\nab\r\n" * 8192)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reading.bodies.bytes == 2**18
    assert peak < 4 * 2**18


def test_the_head_of_the_next_request_is_not_as_long_as_the_body_before_it() -> None:
    body = b"x" * 100_000
    first = POST.removesuffix(BODY).replace(b"14", b"100000") + body
    assert Reading().all(first + LIVE[:10], LIVE[10:]) == [
        ("/v1/embeddings", body, None),
        ("/health/live", b"", None),
    ]


def test_a_request_that_is_refused_is_counted_once_whatever_else_is_wrong_with_it() -> None:
    reading = Reading()
    assert reading.all(b"GET /nothing HTTP/1.1\r\n\r\n") == [("/nothing", b"", 404)]
    assert reading.door.refusals == [404]


def test_requests_sent_ahead_wait_as_bytes() -> None:
    reading, many = Reading(), 8000
    assert len(reading.all(LIVE * many)) < 300
    assert reading.reader.is_full
    count = 0
    while reading.reader.has_more:
        reading.reader.ready.clear() if reading.reader.ready else reading.reader.read_on()
        count += len(reading.reader.ready)
    assert len(Reading().all(LIVE * 5)) == 5
    assert not reading.reader.is_full
    assert count > many / 2


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize(
    ("head", "body"),
    [
        (POST.removesuffix(BODY), BODY),
        (CHUNKED, b"e\r\n" + BODY + b"\r\n0\r\n\r\n"),
    ],
)
def test_an_offer_to_speak_something_else_is_declined(head: bytes, body: bytes, size: int) -> None:
    request = head.replace(b"Host: a", UPGRADE) + body
    live = LIVE.replace(b"Host: a", UPGRADE)
    data = request + live + request
    reading = Reading()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    post: tuple[str, bytes, Any] = ("/v1/embeddings", BODY, None)
    assert reading.all(*pieces) == [post, ("/health/live", b"", None), post]
    assert all(each.keep for each in reading.reader.ready)


def test_nothing_is_read_behind_connect() -> None:
    for length in (b"", b"Content-Length: 2\r\n"):
        reading = Reading()
        reading.reader.feed(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n" + length + b"\r\n" + LIVE)
        assert [each.keep for each in reading.reader.ready] == [False]


def test_a_body_counts_until_it_is_answered() -> None:
    reading = Reading()
    reading.reader.feed(POST * 3)
    assert reading.bodies.bytes == 3 * len(BODY)
    reading.reader.close()
    assert reading.bodies.bytes == 0
