import asyncio
import os
import socket

import httpx
import pytest

from shared.infrastructure.http import (
    LocalProtocolViolationError,
    ReadFailedError,
    RemoteProtocolViolationError,
    UpstreamError,
)
from shared.infrastructure.http.wire.errors import StaleConnectionError
from tests.raw_server import OK, Peer, answering, once, turns, until
from tests.unit.http.wire.wired import wired

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n"


async def test_requests_one_after_the_other_share_a_connection() -> None:
    async with wired(answering(OK, CHUNKED, OK)) as http:
        texts = [(await http.get("/x")).text for _ in range(3)]
        assert texts == ["ok", "hello", "ok"]
        assert http.stats("open", "idle", "requests", "reused") == [1, 1, 3, 2]
        assert len(http.server.peers) == 1


async def test_a_response_has_what_httpx_promises() -> None:
    answer = b"HTTP/1.1 404 Nope\r\nX-a: 1\r\nx-A: 2\r\nContent-Length: 2\r\n\r\nok"
    async with wired(answering(answer)) as http:
        response = await http.get("/x")
    assert response.extensions["http_version"] == b"HTTP/1.1"
    assert response.extensions["reason_phrase"] == b"Nope"
    assert (response.status_code, response.reason_phrase) == (404, "Nope")
    assert response.headers.raw == [(b"X-a", b"1"), (b"x-A", b"2"), (b"Content-Length", b"2")]
    assert response.elapsed.total_seconds() > 0


async def test_the_service_gets_one_well_formed_request() -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.request() + await peer.body(7))
        await peer.send(OK)
        assert await peer.gone() == b""

    async with wired(script) as http:
        await http.post("/a/b?c=d%20e", content=b"content", headers=[("x-Y", "1"), ("X-y", "2")])
        authority = http.server.url.removeprefix("http://").encode()
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[:2] == [b"POST /a/b?c=d%20e HTTP/1.1", b"Host: " + authority]
    assert lines[-3:] == [b"x-Y: 1", b"X-y: 2", b"Content-Length: 7"]
    assert body == b"content"


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("GET", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"),
        ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ("GET", OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
        ("GET", OK + b"\x00"),
        ("HEAD", OK),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok"),
    ],
)
async def test_a_connection_that_may_not_or_should_not_go_on_is_closed(
    method: str, answer: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        assert await peer.gone() == b""

    async with wired(script) as http:
        for _ in range(2):
            assert "evil" not in (await http.request(method, "/x")).text
        assert len(http.server.peers) == 2
        await turns()
        assert http.stats("open", "reused") == [0, 0]


async def test_an_answer_that_comes_before_its_request_is_answer_to_nothing() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await asyncio.sleep(0.005)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await peer.gone()

    async with wired(script) as http:
        assert (await http.get("/x")).text == "ok"
        await until(lambda: http.stats("open") == [0])
        assert (await http.get("/x")).text == "ok"
        assert len(http.server.peers) == 2


async def test_a_request_that_asks_for_it_closes_the_connection() -> None:
    async with wired(answering(OK)) as http:
        await http.get("/x", headers={"Connection": "close"})
        await turns()
        assert http.stats("open") == [0]


async def test_head_answers_have_no_body_and_keep_the_connection() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    async with wired(answering(head, OK)) as http:
        response = await http.head("/x")
        assert (response.content, response.headers["content-length"]) == (b"", "1000")
        assert (await http.get("/x")).text == "ok"
        assert http.stats("reused") == [1]


async def test_a_body_without_length_ends_with_the_connection() -> None:
    async with wired(once(b"HTTP/1.1 200 OK\r\n\r\nto the end")) as http:
        assert (await http.get("/x")).text == "to the end"
        await turns()
        assert http.stats("open") == [0]


async def test_an_informational_answer_is_skipped() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with wired(answering(early + OK)) as http:
        response = await http.get("/x")
        assert (response.status_code, response.text) == (200, "ok")
        assert "link" not in response.headers


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing at all"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", id="cut head"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="not HTTP"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, id="too long a head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", id="short body"),
        pytest.param(CHUNKED[:-11], id="cut chunks"),
        pytest.param(CHUNKED.replace(b"0\r\n", b"zz\r\n"), id="bad chunk"),
    ],
)
async def test_what_is_no_answer_is_a_violation_of_both_trees(answer: bytes) -> None:
    async with wired(once(answer)) as http:
        with pytest.raises(RemoteProtocolViolationError) as caught:
            await http.get("/secret?key=1")
        error = caught.value
        assert isinstance(error, httpx.RemoteProtocolError)
        assert str(error.request.url) == f"{http.server.url}/secret?key=1"
        assert (error.phase, error.unsent, error.attempts) == ("read", False, 1)
        assert error.host == http.server.url.removeprefix("http://")
        assert str(error).startswith(f"GET {error.host}/secret: ")
        await turns()
        assert http.stats("open") == [0]


async def test_a_reset_is_a_read_failure_with_its_cause() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            await asyncio.sleep(0.005)
        peer.reset()

    async with wired(script) as http:
        for _ in range(2):
            with pytest.raises(ReadFailedError) as caught:
                await http.get("/x")
            assert isinstance(caught.value, httpx.ReadError)
            assert not isinstance(caught.value, StaleConnectionError)
            assert isinstance(caught.value.__cause__, ConnectionResetError)


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_kept_connection_that_dies_before_the_answer_is_stale_and_not_asked_again(
    is_reset: bool,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        if is_reset:
            peer.reset()

    async with wired(script) as http:
        await http.get("/x")
        with pytest.raises(StaleConnectionError) as caught:
            await http.post("/x", content=b"")
        assert isinstance(caught.value, httpx.ReadError)
        assert (caught.value.code, caught.value.unsent) == ("stale_connection", False)
        assert len(http.server.peers) == 1


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_kept_connection_that_dies_within_the_answer_is_not_stale(is_reset: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(b"HT")
        await asyncio.sleep(0.005)
        if is_reset:
            peer.reset()

    async with wired(script) as http:
        await http.get("/x")
        with pytest.raises(UpstreamError, match=r"within (its|the) answer") as caught:
            await http.get("/x")
        expected = ReadFailedError if is_reset else RemoteProtocolViolationError
        assert isinstance(caught.value, expected)
        assert not isinstance(caught.value, StaleConnectionError)


async def test_what_a_busy_loop_has_not_seen_yet_does_not_reach_the_next_request() -> None:
    async with wired(answering(OK)) as http:
        await http.get("/x")
        sock = http.server.peers[0].writer.get_extra_info("socket")
        os.write(sock.fileno(), b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        assert (await http.get("/x")).text == "ok"
        sock = http.server.peers[1].writer.get_extra_info("socket")
        sock.shutdown(socket.SHUT_WR)
        assert (await http.get("/x")).text == "ok"
        assert len(http.server.peers) == 3


async def test_a_connection_that_is_just_being_closed_is_not_used() -> None:
    async with wired(answering(OK)) as http:
        await http.get("/x")
        (connection,) = http.wire._pool._connections
        connection.close()
        assert (await http.get("/x")).text == "ok"
        assert len(http.server.peers) == 2


async def test_a_kept_connection_that_the_service_closes_is_dropped_before_it_is_used() -> None:
    async with wired(once(OK)) as http:
        for count in range(1, 4):
            assert (await http.get("/x")).text == "ok"
            await until(lambda: http.stats("open", "idle") == [0, 0])
            assert len(http.server.peers) == count


async def test_nothing_is_sent_of_a_request_that_is_not_http() -> None:
    async with wired(answering(OK)) as http:
        for broken in (
            {"headers": {"X": "a\r\nEvil: 1"}},
            {"headers": {"X\n": "a"}},
            {"headers": {"Content-Length": "3"}, "content": b"toolong"},
            {"headers": {"Content-Length": "9"}, "content": b"short"},
        ):
            with pytest.raises(LocalProtocolViolationError) as caught:
                await http.post("/x", **broken)
            assert isinstance(caught.value, httpx.LocalProtocolError)
            assert caught.value.unsent
        with pytest.raises(LocalProtocolViolationError, match="neither http nor https"):
            await http.get("ftp://a.test/")
        assert http.stats("open", "requests") == [0, 0]
        assert http.server.peers == []
