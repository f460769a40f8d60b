"""Exchanges over HTTP/2 with a service that follows a script."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from shared.infrastructure.http import (
    LocalProtocolViolationError,
    RemoteProtocolViolationError,
    UpstreamError,
)
from shared.infrastructure.http.errors import UnprocessedError
from tests.raw_server import turns, until
from tests.unit.http.wire.http2_said import data
from tests.unit.http.wire.http2_wired import (
    Asked,
    Play,
    Service,
    never,
    rst,
    wired2,
)

CANCEL = 8


async def half(service: Service, stream: Asked) -> None:
    """Begin an answer."""
    await service.send(service.head(stream), data(stream.id, b"half"))


async def test_requests_share_a_connection_one_after_the_other_and_side_by_side() -> None:
    async with wired2() as http:
        assert (await http.get("/a")).text == "/a"
        answers = await asyncio.gather(*(http.get(f"/{number}") for number in range(50)))
        assert [answer.text for answer in answers] == [f"/{number}" for number in range(50)]
        assert http.stats("open", "idle", "requests", "reused") == [1, 1, 51, 50]
        assert len(http.services) == 1


async def test_a_cold_start_opens_one_connection() -> None:
    async with wired2() as http:
        answers = await asyncio.gather(*(http.get(f"/{number}") for number in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        assert http.stats("open", "requests", "reused") == [1, 50, 49]
        assert [one.path for one in http.asked()] == [f"/{number}" for number in range(50)]


async def test_a_response_over_http2_has_what_httpx_promises() -> None:
    async def play(service: Service, stream: Asked) -> None:
        await service.answer(stream, ("x-a", "1"), ("x-a", "2"), ("content-length", "2"))

    async with wired2(play) as http:
        response = await http.get("/x")
    assert (response.http_version, response.reason_phrase) == ("HTTP/2", "OK")
    assert response.headers.raw == [(b"x-a", b"1"), (b"x-a", b"2"), (b"content-length", b"2")]
    assert response.elapsed.total_seconds() > 0


async def test_the_service_gets_a_well_formed_request_over_http2() -> None:
    async with wired2() as http:
        await http.post("/a/b?c=d%20e", content=b"content", headers=[("x-Y", " 1 "), ("X-y", "2")])
        (asked,) = http.asked()
        authority = http.server.url.removeprefix("https://")
        assert asked.fields[:4] == [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", authority),
            (":path", "/a/b?c=d%20e"),
        ]
        assert asked.fields[-3:] == [("x-y", "1"), ("x-y", "2"), ("content-length", "7")]
        assert not {"connection", "host"} & dict(asked.fields).keys()
        assert (asked.body, asked.is_whole) == (b"content", True)


@pytest.mark.parametrize("size", [0, 1, 16_384, 65_535, 65_536, 300_000])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_bodies_of_any_size_arrive_whole(size: int, is_streamed: bool) -> None:
    content = bytes(range(250)) * (size // 250 + 1)
    content = content[:size]

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, size, 7_000):
            yield content[at : at + 7_000]

    async def echo(service: Service, stream: Asked) -> None:
        await until(lambda: stream.is_whole)
        await service.answer(stream)

    async with wired2(echo) as http:
        for _ in range(2):
            await http.post("/x", content=pieces() if is_streamed else content)
        for asked in http.asked():
            assert asked.body == content
            assert ("content-length" in dict(asked.fields)) is not is_streamed
            assert "transfer-encoding" not in dict(asked.fields)
        assert http.stats("open", "reused") == [1, 1]


async def test_head_and_hints_over_http2() -> None:
    async def play(service: Service, stream: Asked) -> None:
        await service.send(service.head(stream, 103, ("link", "x")))
        head = service.head(stream, 200, ("content-length", "9"))
        await service.send(head, data(stream.id, end=True))

    async with wired2(play) as http:
        response = await http.head("/x")
        assert (response.status_code, response.headers["content-length"]) == (200, "9")
        assert "link" not in response.headers
        assert response.content == b""


async def refuse(service: Service, stream: Asked) -> None:
    """Answer before the upload is over, and take no more of it."""
    end = data(stream.id, b"too big", end=True)
    await service.send(service.head(stream, 413), end, rst(stream, 0))


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_early_answer_stops_the_upload_and_spares_the_connection(
    is_streamed: bool,
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000

    async with wired2(paths={"/big": refuse}) as http:
        response = await http.post("/big", content=endless() if is_streamed else bytes(10**6))
        assert (response.status_code, response.text) == (413, "too big")
        assert (await http.get("/next")).text == "/next"
        assert len(http.services) == 1
        assert http.stats("open", "idle") == [1, 1]


async def test_an_error_before_the_upload_is_over_is_read_to_its_end() -> None:
    async def play(service: Service, stream: Asked) -> None:
        service.opens_window = False
        await service.send(service.head(stream, 500), data(stream.id, b"no"))
        await asyncio.sleep(0.01)
        await service.send(data(stream.id, b"pe", end=True))

    async with wired2(play) as http:
        response = await http.post("/x", content=bytes(10**6))
        assert (response.status_code, response.text) == (500, "nope")
        await until(lambda: http.asked()[0].reset == CANCEL)
        assert http.stats("open", "idle") == [1, 1]


async def test_a_cancelled_exchange_ends_its_stream_and_no_other() -> None:
    async with wired2(paths={"/slow": never, "/half": half}) as http:
        await http.get("/first")
        slow = asyncio.create_task(http.get("/slow"))
        stuck = asyncio.create_task(http.get("/half"))
        for path in ("/slow", "/half"):
            await http.seen(path)
        slow.cancel()
        stuck.cancel()
        await asyncio.gather(slow, stuck, return_exceptions=True)
        assert http.stats("open", "idle") == [1, 1]
        await until(lambda: [one.reset for one in http.asked()] == [None, CANCEL, CANCEL])
        assert (await http.get("/next")).text == "/next"
        assert len(http.services) == 1


@pytest.mark.parametrize("count", range(25))
async def test_cancelling_at_any_moment_leaves_nothing_behind_over_http2(count: int) -> None:
    async with wired2() as http:
        tasks = [asyncio.create_task(http.post("/x", content=bytes(99))) for _ in range(3)]
        await turns(count)
        for task in tasks[:2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes[2], httpx.Response)
        assert (await http.get("/y")).text == "/y"
        await turns()
        assert http.stats("open", "idle", "connecting", "waiting") == [1, 1, 0, 0]


async def test_a_body_left_unread_over_http2_is_closed_with_a_warning() -> None:
    async with wired2(paths={"/half": half}) as http:
        request = http.build_request("GET", "/half")
        response = await http.wire.handle_async_request(request)
        held = [response, request]
        del response, request
        with pytest.warns(ResourceWarning, match="neither read nor closed"):
            held.clear()
        await until(lambda: http.stats("idle") == [1])
        await until(lambda: http.asked()[0].reset == CANCEL)
        assert (await http.get("/next")).text == "/next"
        assert len(http.services) == 1


async def test_a_body_closed_early_ends_its_stream() -> None:
    async with wired2(paths={"/half": half}) as http:
        async with http.stream("GET", "/half") as response:
            assert response.status_code == 200
        assert http.stats("open", "idle") == [1, 1]
        assert (await http.get("/next")).text == "/next"
        await until(lambda: http.asked()[0].reset == CANCEL)


async def test_a_body_that_is_not_what_was_declared_ends_its_stream() -> None:
    async def three() -> AsyncIterator[bytes]:
        yield b"abc"

    async with wired2(never) as http:
        for length, words in (("2", "longer"), ("4", "shorter")):
            with pytest.raises(LocalProtocolViolationError, match=words):
                await http.post("/x", content=three(), headers={"content-length": length})
        assert http.stats("open", "idle") == [1, 1]
        await until(lambda: [one.reset for one in http.asked()] == [CANCEL, CANCEL])


async def test_nothing_is_sent_of_a_request_that_is_not_http2() -> None:
    async with wired2() as http:
        for broken in (
            {"headers": {"X": "a\r\nEvil: 1"}},
            {"headers": {"X\n": "a"}},
            {"headers": {"Content-Length": "3"}, "content": b"toolong"},
            {"headers": {"Transfer-Encoding": "gzip"}},
        ):
            with pytest.raises(LocalProtocolViolationError):
                await http.post("/x", **broken)
        assert http.stats("open", "requests") == [0, 0]


async def wrong(service: Service, stream: Asked) -> None:
    """Answer with more than there is to be."""
    head = service.head(stream, 200, ("content-length", "1"))
    await service.send(head, data(stream.id, b"four", end=True))


def resets_with(code: int) -> Play:
    return lambda service, stream: service.send(rst(stream, code))


@pytest.mark.parametrize(
    ("play", "kind"),
    [
        (wrong, RemoteProtocolViolationError),
        (resets_with(2), RemoteProtocolViolationError),
        (resets_with(7), UnprocessedError),
    ],
)
async def test_what_goes_wrong_on_a_stream_is_its_own_affair(
    play: Play, kind: type[UpstreamError]
) -> None:
    gate = asyncio.Event()

    async def slow(service: Service, stream: Asked) -> None:
        await gate.wait()
        await service.answer(stream)

    async with wired2(paths={"/bad": play, "/slow": slow}) as http:
        other = asyncio.create_task(http.get("/slow"))
        await http.seen("/slow")
        with pytest.raises(kind) as caught:
            await http.get("/bad?secret")
        assert isinstance(caught.value, httpx.RemoteProtocolError)
        assert caught.value.host == http.server.url.removeprefix("https://")
        assert caught.value.unsent is (kind is UnprocessedError)
        gate.set()
        assert (await other).text == "/slow"
        assert http.stats("open", "idle") == [1, 1]
