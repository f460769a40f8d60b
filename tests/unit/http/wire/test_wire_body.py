import asyncio
import gc
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from shared.infrastructure.http import (
    LocalProtocolViolationError,
    ReadFailedError,
    RemoteProtocolViolationError,
    WriteFailedError,
)
from shared.infrastructure.http.wire import connection
from tests.raw_server import OK, Peer, answering, turns, until
from tests.unit.http.wire.wired import wired

REFUSED = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def expecting(size: int, seen: list[bytes], *, head: bytes = b"") -> Callable[[Peer], object]:
    async def script(peer: Peer) -> None:
        while True:
            assert head in await peer.request()
            seen.append(await peer.body(size))
            await peer.send(OK)

    return script


async def test_a_generator_is_sent_in_chunks_without_an_early_end() -> None:
    seen: list[bytes] = []
    wire = b"2\r\nab\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"
    async with wired(expecting(len(wire), seen, head=b"Transfer-Encoding: chunked")) as http:
        for _ in range(2):
            body = pieces(b"", b"ab", b"", b"0123456789abcdef", b"")
            assert (await http.post("/x", content=body)).text == "ok"
        assert seen == [wire, wire]
        assert http.stats("reused") == [1]


async def test_a_generator_with_a_declared_length_is_sent_as_it_is() -> None:
    seen: list[bytes] = []
    async with wired(expecting(4, seen, head=b"Content-Length: 4")) as http:
        for _ in range(2):
            headers = {"Content-Length": "4"}
            await http.post("/x", content=pieces(b"ab", b"", b"cd"), headers=headers)
        assert seen == [b"abcd", b"abcd"]
        assert http.stats("reused") == [1]


async def test_bytes_can_be_sent_in_chunks_too() -> None:
    seen: list[bytes] = []
    async with wired(expecting(12, seen)) as http:
        request = http.build_request("POST", "/x", content=b"ab")
        del request.headers["Content-Length"]
        request.headers["Transfer-Encoding"] = "chunked"
        await http.send(request)
    assert seen == [b"2\r\nab\r\n0\r\n\r\n"]


@pytest.mark.parametrize("chunks", [(b"abc",), (b"abcde",), (b"ab", b"cd", b"e"), ()])
async def test_a_body_of_another_length_than_declared_ends_the_connection(
    chunks: tuple[bytes, ...],
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        assert len(await peer.gone()) <= 4

    async with wired(script) as http:
        with pytest.raises(LocalProtocolViolationError, match="than declared"):
            await http.post("/x", content=pieces(*chunks), headers={"Content-Length": "4"})
        await turns()
        assert http.stats("open") == [0]


async def test_a_generator_that_fails_ends_the_connection_with_its_own_error() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"some"
        raise KeyError("mine")

    async def script(peer: Peer) -> None:
        await peer.request()
        assert not (await peer.gone()).endswith(b"0\r\n\r\n")

    async with wired(script) as http:
        with pytest.raises(KeyError, match="mine"):
            await http.post("/x", content=failing())
        await turns()
        assert http.stats("open") == [0]


@pytest.mark.parametrize("size", [100, 131_072, 131_073, 3_000_000])
async def test_a_body_of_any_size_arrives_whole(size: int) -> None:
    seen: list[bytes] = []
    content = bytes(range(256)) * (size // 256 + 1)
    async with wired(expecting(size, seen)) as http:
        for _ in range(2):
            assert (await http.post("/x", content=content[:size])).text == "ok"
        assert seen == [content[:size]] * 2
        assert http.stats("reused") == [1]


async def test_a_generator_is_asked_for_no_more_than_the_service_takes() -> None:
    asked = 0
    go = asyncio.Event()
    chunk = b"x" * 65_536

    async def body() -> AsyncIterator[bytes]:
        nonlocal asked
        for _ in range(1000):
            asked += 1
            yield chunk

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.reader._limit = 1  # stop reading: the kernel's buffers are all there is
        await go.wait()
        peer.reader._limit = 2**22
        seen = 0
        while seen < 1000 * len(chunk):
            seen += len(await peer.reader.read(2**20))
        await peer.send(OK)

    async with wired(script) as http:
        sending = asyncio.create_task(http.post("/x", content=body()))
        before = -1
        while before != asked:
            before = asked
            await asyncio.sleep(0.03)
        assert 0 < asked < 500
        go.set()
        assert (await sending).text == "ok"
        assert asked == 1000


async def refuse_early(peer: Peer) -> None:
    await peer.request()
    await peer.send(REFUSED)
    await peer.gone()


async def test_an_early_refusal_is_delivered_and_ends_the_upload() -> None:
    asked = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield b"x" * 1000
            await asyncio.sleep(0)

    async with wired(refuse_early) as http:
        response = await http.post("/x", content=endless())
        assert (response.status_code, response.text) == (413, "big")
        assert asked < 10_000
        await turns()
        assert http.stats("open", "idle") == [0, 0]


async def test_an_early_refusal_reaches_an_upload_that_is_stuck() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.reader._limit = 1
        await asyncio.sleep(0.01)
        await peer.send(REFUSED)
        await asyncio.sleep(30)

    async with wired(script) as http:
        response = await http.post("/x", content=b"x" * 30_000_000)
        assert (response.status_code, response.text) == (413, "big")
        await turns()
        assert http.stats("open") == [0]


@pytest.mark.parametrize("piece", [128 * 1024, 1 << 30])
async def test_the_head_of_an_early_refusal_ends_an_upload_that_is_stuck(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_PIECE", piece)
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.reader._limit = 1
        await asyncio.sleep(0.01)
        await peer.send(REFUSED[:-3])
        await go.wait()
        await peer.send(REFUSED[-3:])
        await asyncio.sleep(30)

    async with wired(script) as http, http.stream("POST", "/x", content=b"x" * 30_000_000) as got:
        go.set()
        assert (got.status_code, await got.aread()) == (413, b"big")
        await turns()
        assert http.stats("open") == [0]


async def test_an_early_answer_that_is_no_refusal_does_not_cut_the_upload_short() -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        seen.append(await peer.body(6))
        await peer.send(b"2\r\nok\r\n0\r\n\r\n")
        await peer.gone()

    async def slow() -> AsyncIterator[bytes]:
        yield b"abc"
        await asyncio.sleep(0.01)
        yield b"def"

    async with wired(script) as http:
        headers = {"Content-Length": "6"}
        assert (await http.post("/x", content=slow(), headers=headers)).text == "ok"
        assert seen == [b"abcdef"]
        assert http.stats("idle") == [1]


async def test_a_connection_that_breaks_within_the_upload_is_a_write_failure() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.reset()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000
            await asyncio.sleep(0)

    async with wired(script) as http:
        with pytest.raises(WriteFailedError) as caught:
            await http.post("/x", content=endless())
        assert isinstance(caught.value, httpx.WriteError)
        assert caught.value.phase == "write"


async def test_a_generator_that_never_waits_does_not_outlive_its_connection() -> None:
    asked = 0
    peers: list[Peer] = []

    async def body() -> AsyncIterator[bytes]:
        nonlocal asked
        yield b"x"
        await until(lambda: bool(peers))
        peers[0].reset()
        await asyncio.sleep(0)  # the socket is closed; the client has yet to look
        for asked in range(10_000):  # noqa: B007
            yield b"x"

    async def script(peer: Peer) -> None:
        await peer.request()
        peers.append(peer)
        await peer.gone()

    async with wired(script) as http:
        with pytest.raises(WriteFailedError):
            await http.post("/x", content=body())
        assert asked < 100


async def big_answer(peer: Peer) -> None:
    chunk = b"x" * 65_536
    await peer.request()
    peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1000 * len(chunk)))
    for _ in range(1000):
        await peer.send(chunk)


async def test_a_slow_reader_holds_the_service_back_and_not_the_memory() -> None:
    chunk, sent = b"x" * 65_536, 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1000 * len(chunk)))
        while sent < 1000 * len(chunk):
            await peer.send(chunk)
            sent += len(chunk)

    async with wired(script) as http, http.stream("GET", "/x") as response:
        (connection,) = http.wire._pool._connections
        assert connection._exchange is not None
        answer = connection._exchange.answer
        total = rounds = 0
        async for piece in response.aiter_raw():
            total += len(piece)
            rounds += 1
            before = -1
            while rounds < 4 and before != sent:
                before = sent
                await asyncio.sleep(0.03)
            assert answer.buffered <= 512 * 1024
            assert rounds > 3 or sent < 30_000_000  # the kernels' buffers are all there is
        assert total == sent


async def test_a_connection_that_was_held_back_reads_on_for_the_next_request() -> None:
    size = 400_000
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    async with wired(answering(answer)) as http:
        for _ in range(5):
            async with http.stream("GET", "/x") as response:
                await asyncio.sleep(0.01)
                assert len(await response.aread()) == size
        assert http.stats("open") == [1]


async def test_a_response_that_is_closed_early_closes_its_connection() -> None:
    async with wired(big_answer) as http:
        async with http.stream("GET", "/x") as response:
            assert response.status_code == 200
        await turns(3)
        assert http.stats("open") == [0]


async def test_an_unread_response_that_has_arrived_gives_its_connection_back_by_itself() -> None:
    async with wired(answering(OK), most=1) as http:
        async with http.stream("GET", "/x") as first, http.stream("GET", "/y") as second:
            assert (await second.aread(), await first.aread()) == (b"ok", b"ok")
        assert http.stats("open", "idle", "reused") == [1, 1, 1]


async def test_what_arrived_before_a_body_broke_is_delivered_before_the_error() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")

    async with wired(script) as http, http.stream("GET", "/x") as response:
        await until(lambda: http.stats("open") == [0])
        stream = response.aiter_raw()
        assert await anext(stream) == b"half"
        with pytest.raises(RemoteProtocolViolationError) as caught:
            await anext(stream)
        assert caught.value.host in http.server.url


async def test_a_response_that_nobody_closes_is_closed_when_it_is_forgotten() -> None:
    async with wired(big_answer) as http:
        response = await http.send(http.build_request("GET", "/x"), stream=True)
        assert http.stats("open") == [1]
        del response
        with pytest.warns(ResourceWarning, match="neither read nor closed"):
            gc.collect()
        await turns(3)
        assert http.stats("open") == [0]


async def test_a_forgotten_response_that_had_arrived_is_no_cause_for_a_warning() -> None:
    async with wired(answering(OK)) as http:
        response = await http.send(http.build_request("GET", "/x"), stream=True)
        del response
        gc.collect()
        assert http.stats("idle") == [1]


async def test_reading_on_after_the_client_was_closed_is_a_read_failure() -> None:
    async with wired(big_answer) as http:
        response = await http.send(http.build_request("GET", "/x"), stream=True)
        await http.aclose()
        assert http.stats("open") == [0]
        with pytest.raises(ReadFailedError, match="client was closed"):
            await response.aread()
