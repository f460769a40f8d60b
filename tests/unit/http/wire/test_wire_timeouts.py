import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from shared.infrastructure.http import (
    ConnectTimeoutError,
    ReadTimeoutError,
    WriteTimeoutError,
)
from shared.infrastructure.http.wire import connection
from shared.infrastructure.resilience.clock import MONOTONIC
from shared.infrastructure.testing import FakeClock
from tests.raw_server import OK, Peer, Script, answering, silent, turns, until
from tests.unit.http.wire.wired import Wired, wired

HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf"


async def begun(http: Wired, task: asyncio.Task[httpx.Response]) -> None:
    """Wait until the request of `task` is with the service."""
    await until(lambda: http.stats("open", "connecting") == [1, 0])
    await asyncio.sleep(0.01)
    assert not task.done()


async def test_silence_is_a_read_timeout_and_closes_the_connection() -> None:
    clock = FakeClock()
    async with wired(silent, clock=clock, timeout=httpx.Timeout(None, read=3)) as http:
        task = asyncio.create_task(http.get("/x"))
        await begun(http, task)
        await clock.advance(2.9)
        assert not task.done()
        await clock.advance(0.2)
        with pytest.raises(ReadTimeoutError, match="said nothing for 3 s") as caught:
            await task
        assert isinstance(caught.value, httpx.ReadTimeout)
        assert (caught.value.phase, caught.value.unsent) == ("read", False)
        await turns(3)
        assert http.stats("open") == [0]
        assert clock.pending == 0


async def test_silence_within_the_body_is_a_read_timeout_too() -> None:
    clock = FakeClock()
    async with (
        wired(answering(HALF), clock=clock, timeout=httpx.Timeout(None, read=3)) as http,
        http.stream("GET", "/x") as response,
    ):
        task = asyncio.create_task(response.aread())
        await asyncio.sleep(0.01)
        await clock.advance(3.1)
        with pytest.raises(ReadTimeoutError) as caught:
            await task
        assert caught.value.host is not None


async def test_a_reader_that_takes_its_time_is_no_timeout() -> None:
    clock = FakeClock()
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HALF)
        await go.wait()
        await peer.send(b"half")
        await peer.gone()

    limits = httpx.Timeout(None, read=3)
    async with (
        wired(script, clock=clock, timeout=limits) as http,
        http.stream("GET", "/x") as response,
    ):
        await clock.advance(100.0)
        go.set()
        assert await response.aread() == b"halfhalf"


async def test_every_byte_starts_the_read_timeout_anew() -> None:
    clock = FakeClock()
    more = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        for byte in OK:
            await more.wait()
            more.clear()
            await peer.send(bytes([byte]))
        await peer.gone()

    async with wired(script, clock=clock, timeout=httpx.Timeout(None, read=3)) as http:
        task = asyncio.create_task(http.get("/x"))
        await begun(http, task)
        for _ in OK:
            await clock.advance(2.5)
            more.set()
            await asyncio.sleep(0.002)
        assert (await task).text == "ok"


async def test_one_timer_serves_all_requests_of_a_connection() -> None:
    clock = FakeClock()
    async with wired(answering(OK), clock=clock, timeout=httpx.Timeout(None, read=3)) as http:
        for _ in range(10):
            await http.get("/x")
            assert clock.pending <= 2  # that one and that of keep-alive
        await clock.advance(3.1)
        assert http.stats("open") == [1]
        await http.get("/x")
        assert http.stats("reused") == [10]


async def test_a_shorter_read_timeout_counts_although_a_longer_one_was_set_before() -> None:
    clock = FakeClock()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.gone()

    async with wired(script, clock=clock, timeout=httpx.Timeout(None, read=30)) as http:
        await http.get("/x")
        task = asyncio.create_task(http.get("/x", timeout=httpx.Timeout(None, read=1)))
        await begun(http, task)
        await clock.advance(1.1)
        with pytest.raises(ReadTimeoutError, match="1 s"):
            await task


async def test_without_limits_no_timer_is_set_but_that_of_keep_alive() -> None:
    clock = FakeClock()
    async with wired(silent, clock=clock, timeout=None) as http:
        task = asyncio.create_task(http.get("/x"))
        await begun(http, task)
        assert clock.pending == 0
        await clock.advance(1e6)
        assert not task.done()
        task.cancel()


def stuck(go: asyncio.Event) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.reader._limit = 1
        await go.wait()
        peer.reader._limit = 2**22
        await peer.body(30_000_000)
        await peer.send(OK)

    return script


async def test_a_service_that_stops_taking_the_request_is_a_write_timeout() -> None:
    clock = FakeClock()
    limits = httpx.Timeout(None, write=2)
    async with wired(stuck(asyncio.Event()), clock=clock, timeout=limits) as http:
        task = asyncio.create_task(http.post("/x", content=b"x" * 30_000_000))
        await begun(http, task)
        await clock.advance(1.9)
        await asyncio.sleep(0.01)
        await clock.advance(1.9)  # the kernels may have moved some of it meanwhile
        await clock.advance(2.1)
        with pytest.raises(WriteTimeoutError, match="took nothing for 2 s") as caught:
            await task
        assert isinstance(caught.value, httpx.WriteTimeout)
        assert caught.value.phase == "write"
        await turns(3)
        assert http.stats("open") == [0]


@pytest.mark.parametrize("piece", [128 * 1024, 1 << 30])
async def test_a_service_that_takes_the_request_slowly_is_no_write_timeout(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_PIECE", piece)
    clock = FakeClock()
    seen = 0

    async def script(peer: Peer) -> None:
        nonlocal seen
        await peer.request()
        peer.reader._limit = 1
        while seen < 30_000_000:
            seen += len(await peer.reader.read(2_000_000))
            await asyncio.sleep(0.001)
        await peer.send(OK)

    async with wired(script, clock=clock, timeout=httpx.Timeout(None, write=2)) as http:
        task = asyncio.create_task(http.post("/x", content=b"x" * 30_000_000))
        await begun(http, task)
        rounds = 0
        while not task.done():
            before = seen
            await clock.advance(1.0)
            rounds += 1
            # A second passes only when the service has taken more, and the wire has noticed.
            goal = min(before + 2_000_000, 30_000_000)
            await until(lambda goal=goal: seen >= goal or task.done())
            await asyncio.sleep(0.02)
        assert (await task).text == "ok"
        assert rounds > 3


async def test_a_caller_that_yields_its_body_slowly_is_no_timeout() -> None:
    clock = FakeClock()
    go = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        await go.wait()
        yield b"b"

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.reader.readuntil(b"\r\n0\r\n\r\n")
        await peer.send(OK)
        await peer.gone()

    async with wired(script, clock=clock, timeout=httpx.Timeout(3.0)) as http:
        task = asyncio.create_task(http.post("/x", content=body()))
        await begun(http, task)
        await clock.advance(100.0)
        assert not task.done()
        go.set()
        assert (await task).text == "ok"


async def test_no_connection_in_time_is_a_connect_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()

    async def never(*_: object, **__: object) -> list[object]:
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    limits = httpx.Timeout(None, connect=2)
    async with wired(silent, clock=clock, timeout=limits, most=1) as http:
        task = asyncio.create_task(http.get("http://a.test/"))
        await turns()
        await clock.advance(1.9)
        assert http.stats("connecting") == [1]
        await clock.advance(0.2)
        with pytest.raises(ConnectTimeoutError, match="connecting took longer than 2 s") as caught:
            await task
        assert isinstance(caught.value, httpx.ConnectTimeout)
        assert (caught.value.phase, caught.value.unsent) == ("connect", True)
        assert caught.value.host == "a.test"
        assert http.stats("connecting") == [0]


async def test_the_connect_timeout_includes_tls() -> None:
    clock = FakeClock()
    async with wired(silent, clock=clock, timeout=httpx.Timeout(None, connect=2)) as http:
        url = http.server.url.replace("http://", "https://")
        task = asyncio.create_task(http.get(url))
        await until(lambda: len(http.server.peers) == 1)
        await clock.advance(2.1)
        with pytest.raises(ConnectTimeoutError):
            await task
        await turns()


async def test_the_clock_of_the_machine_does_as_well() -> None:
    limits = httpx.Timeout(None, read=0.02)
    async with wired(silent, clock=MONOTONIC, timeout=limits) as http:
        with pytest.raises(ReadTimeoutError):
            await http.get("/x")
