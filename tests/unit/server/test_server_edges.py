import asyncio

import pytest
from server_site import PLAIN, STREAM, Site, head_of, site

from shared.infrastructure.server import Reply, Request, ServerConfig, health_routes
from shared.infrastructure.server.health import HealthHandlers
from shared.infrastructure.server.response import encoded
from shared.infrastructure.settings import ServerSettings

LIVE = PLAIN.replace(b"/plain/x", b"/health/live")


def with_health(running: Site) -> None:
    class Well:
        is_started = is_ready = True

    health = HealthHandlers(Well(), lambda: False)
    running.app.routes.update(health_routes(health, what="stream", loaded="all is"))


def test_a_request_shows_neither_credentials_nor_its_body() -> None:
    request = Request("POST", "/", {b"authorization": b"Bearer s3cret"}, b"key=s3cret", b"s3cret")
    assert "s3cret" not in repr(request)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (b"X-Api-Key: a\r\nX-Api-Key: b\r\n", b"a header comes twice"),
        (b"Authorization: a\r\nAuthorization: b\r\n", b"a header comes twice"),
    ],
)
async def test_a_second_credential_is_refused(more: bytes, words: bytes) -> None:
    async with site() as running:
        reader, _ = await running.ask(PLAIN[:-2] + more + b"\r\n")
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400")
    assert words in answer


async def test_chunks_of_a_client_of_http_1_0_are_refused() -> None:
    request = STREAM.replace(b"1.1", b"1.0").replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked"
    )
    async with site() as running:
        reader, _ = await running.ask(request + b"0\r\n\r\n")
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400")


async def test_a_broken_stream_never_looks_whole_to_a_client_of_http_1_0() -> None:
    async with site() as running:
        reader, _ = await running.ask(STREAM.replace(b"1.1", b"1.0"))
        running.source.put(b"data: one\n\n")
        await head_of(reader)
        running.source.put(RuntimeError())
        with pytest.raises(ConnectionResetError):
            await reader.read()


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_has_no_length(status: int) -> None:
    (head,) = encoded(Reply(b"", status), keep=True)
    assert b"content-length" not in head


def test_a_status_of_nobodys_is_still_sent() -> None:
    assert encoded(Reply(b"", 700), keep=True)[0].startswith(b"HTTP/1.1 700")


async def test_the_head_of_an_answer_may_be_asked_for_alone() -> None:
    async with site() as running:
        reader, _ = await running.ask(PLAIN.replace(b"GET", b"HEAD") + PLAIN)
        head = await head_of(reader)
        assert "200 ok" in head
        assert "content-length: 12" in head
        assert "200 ok" in await head_of(reader)


async def test_a_probe_is_answered_however_many_connections_there_are() -> None:
    async with site(max_connections=1) as running:
        with_health(running)
        first, _ = await running.ask(PLAIN)
        assert "200 ok" in await head_of(first)
        for path, status in ((LIVE, "200"), (PLAIN, "503"), (LIVE + PLAIN, "200")):
            reader, _ = await running.ask(path)
            assert f"http/1.1 {status}" in await head_of(reader)
            # It keeps no place.
            rest = await reader.read()
            assert b"HTTP/1.1" not in rest


async def test_a_flood_of_connections_is_refused_unheard() -> None:
    async with site(max_connections=1) as running:
        with_health(running)
        for _ in range(17):
            await running.connect()
        async with asyncio.timeout(5):
            reader, _ = await running.ask(LIVE)
            assert "503" in await head_of(reader)


def test_the_config_of_a_server_is_that_of_its_settings() -> None:
    settings = ServerSettings(port=1, drain_delay=0.5)
    config = ServerConfig.of(settings, keep_alive=3.0)
    assert (config.port, config.drain_delay, config.keep_alive) == (1, 0.5, 3.0)
