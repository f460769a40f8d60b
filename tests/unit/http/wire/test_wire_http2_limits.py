"""Time limits and flow control of streams that share a connection."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hyperframe import frame as frames

from shared.infrastructure.http import (
    ReadTimeoutError,
    RemoteProtocolViolationError,
    WriteTimeoutError,
)
from shared.infrastructure.http.wire import http2_connection
from shared.infrastructure.http.wire.http2_stream import STREAM_WINDOW
from shared.infrastructure.testing import FakeClock
from tests.raw_server import turns, until
from tests.unit.http.wire.http2_said import data
from tests.unit.http.wire.http2_wired import Asked, Service, Wired2, never, window, wired2

CANCEL = 8
MEGABYTE = bytes(10**6)


def limits(**seconds: float) -> httpx.Timeout:
    return httpx.Timeout(None, **seconds)


async def settled(http: Wired2) -> None:
    """Let what is on its way arrive."""
    for _ in range(10):
        await asyncio.sleep(0.002)
        await turns()


async def test_silence_ends_the_stream_it_is_on_and_no_other() -> None:
    clock = FakeClock()
    async with wired2(never, clock=clock) as http:
        short = asyncio.create_task(http.get("/short", timeout=limits(read=3)))
        long = asyncio.create_task(http.get("/long", timeout=limits(read=30)))
        endless = asyncio.create_task(http.get("/endless", timeout=None))
        for path in ("/short", "/long", "/endless"):
            await http.seen(path)
        await settled(http)
        await clock.advance(2.9)
        assert not short.done()
        await clock.advance(0.2)
        with pytest.raises(ReadTimeoutError, match="said nothing for 3 s"):
            await short
        await until(lambda: http.asked()[0].reset == CANCEL)
        await clock.advance(25.0)
        await http.services[0].answer(await http.seen("/long"))
        assert (await long).text == "/long"
        await clock.advance(1000.0)
        await http.services[0].answer(await http.seen("/endless"))
        assert (await endless).text == "/endless"
        assert len(http.services) == 1


async def test_only_what_comes_on_a_stream_breaks_its_silence() -> None:
    clock = FakeClock()
    async with wired2(never, clock=clock) as http:
        tasks = [
            asyncio.create_task(http.get(path, timeout=limits(read=3))) for path in ("/a", "/b")
        ]
        first, second = await http.seen("/a"), await http.seen("/b")
        (service,) = http.services
        await settled(http)
        await service.send(service.head(first), service.head(second))
        await settled(http)
        for _ in range(4):
            await clock.advance(2.0)
            await service.send(
                data(second.id, b"x"),
                data(first.id, b""),
                window(first.id, 1),
                frames.PingFrame(0, bytes(8)),
            )
            await settled(http)
        with pytest.raises(ReadTimeoutError):
            await tasks[0]
        await service.send(data(second.id, end=True))
        assert (await tasks[1]).text == "xxxx"


async def begins(service: Service, stream: Asked) -> None:
    await service.send(service.head(stream), data(stream.id, b"half"))


async def test_silence_within_a_body_over_http2() -> None:
    clock = FakeClock()
    async with wired2(begins, clock=clock, timeout=limits(read=3)) as http:
        async with http.stream("GET", "/x") as response:
            chunks = response.aiter_raw()
            assert await anext(chunks) == b"half"
            reading = asyncio.ensure_future(anext(chunks))
            await turns()
            await clock.advance(3.1)
            with pytest.raises(ReadTimeoutError):
                await reading
        assert http.stats("open", "idle") == [1, 1]


async def test_time_in_which_nobody_reads_does_not_count_over_http2() -> None:
    clock = FakeClock()
    async with (
        wired2(begins, clock=clock, timeout=limits(read=3)) as http,
        http.stream("GET", "/x") as response,
    ):
        await clock.advance(100.0)
        (asked,) = http.asked()
        await http.services[0].send(data(asked.id, b"half", end=True))
        assert await response.aread() == b"halfhalf"


async def no_window(service: Service, _stream: Asked) -> None:
    """Take what the first window allows."""
    service.opens_window = False


async def test_a_window_that_stays_shut_is_a_write_timeout_of_its_stream() -> None:
    clock = FakeClock()
    async with wired2(no_window, clock=clock, timeout=limits(write=3)) as http:
        upload = asyncio.create_task(http.post("/up", content=MEGABYTE))
        asked = await http.seen("/up")
        (service,) = http.services
        # The first frame may have been granted anew before the service knew better.
        await until(lambda: len(asked.body) >= 65_535)
        await settled(http)
        had = len(asked.body)
        await clock.advance(2.9)
        await service.send(window(0, 1000), window(asked.id, 1000))
        await until(lambda: len(asked.body) == had + 1000)
        await clock.advance(2.9)
        assert not upload.done()
        await clock.advance(0.2)
        with pytest.raises(WriteTimeoutError, match="took nothing for 3 s"):
            await upload
        await until(lambda: asked.reset == CANCEL)
        assert http.stats("open", "idle") == [1, 1]


async def test_an_answer_gives_an_upload_no_more_time() -> None:
    clock = FakeClock()
    async with wired2(no_window, clock=clock, timeout=limits(write=3)) as http:
        upload = asyncio.create_task(http.post("/up", content=MEGABYTE))
        asked = await http.seen("/up")
        (service,) = http.services
        await until(lambda: len(asked.body) >= 65_535)
        await service.send(service.head(asked))
        await settled(http)
        for _ in range(2):
            await clock.advance(2.0)
            await service.send(data(asked.id, b"x"))
            await settled(http)
        with pytest.raises(WriteTimeoutError):
            await upload


async def test_a_socket_that_takes_nothing_is_a_write_timeout_over_http2() -> None:
    clock = FakeClock()

    async def deaf(service: Service, stream: Asked) -> None:
        await service.send(window(0, 2**30), window(stream.id, 2**30))
        service.peer.writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield MEGABYTE

    async with wired2(deaf, clock=clock, timeout=limits(write=3)) as http:
        upload = asyncio.create_task(http.post("/up", content=chunks()))
        await http.seen("/up")
        await until(lambda: next(iter(http.wire._pool._connections))._is_full)
        for _ in range(20):  # until the kernel has taken all that it can
            await settled(http)
        for _ in range(40):
            await clock.advance(1.0)
            await settled(http)
            if upload.done():
                break
        with pytest.raises(WriteTimeoutError):
            await upload
        (connection,) = http.wire._pool._connections
        assert connection._pending() < 2 * 10**6


async def test_windows_are_shared_out_among_those_who_send() -> None:
    async with wired2(no_window) as http:
        tasks = [asyncio.create_task(http.post(f"/{n}", content=MEGABYTE)) for n in range(3)]
        for number in range(3):
            await http.seen(f"/{number}")
        (service,) = http.services
        await until(lambda: sum(len(one.body) for one in http.asked()) >= 65_535)
        for one in http.asked():
            await service.send(window(one.id, 10**6))
        await settled(http)
        before = [len(one.body) for one in http.asked()]
        for _ in range(6):
            await service.send(window(0, 1000))
            await settled(http)
        assert [len(one.body) - had for one, had in zip(http.asked(), before, strict=True)] == [
            *(2000, 2000, 2000)
        ]
        for task in tasks:
            task.cancel()


async def floods(service: Service, stream: Asked) -> None:
    """Send a body as long as the window allows, and then as it is granted anew."""
    await service.send(service.head(stream))
    sent = 0
    while sent < 4 * STREAM_WINDOW and stream.reset is None:
        room = STREAM_WINDOW + service.windows.get(stream.id, 0) - sent
        if room < 16_384:
            await asyncio.sleep(0.001)
            continue
        await service.send(data(stream.id, bytes(16_384)))
        sent += 16_384
    await service.send(data(stream.id, end=True))


async def test_a_reader_that_does_not_read_holds_up_nobody_else() -> None:
    async with wired2(paths={"/flood": floods}) as http:
        async with http.stream("GET", "/flood") as slow, http.stream("GET", "/flood") as other:
            (service,) = http.services
            assert len(await other.aread()) == 4 * STREAM_WINDOW
            assert service.windows[0] >= 2 * STREAM_WINDOW
            assert 1 not in service.windows or 3 not in service.windows
            assert (await http.get("/x")).text == "/x"
            assert len(await slow.aread()) == 4 * STREAM_WINDOW
        assert len(http.services) == 1


async def test_settings_that_change_the_window_reach_streams_under_way() -> None:
    async with wired2(no_window, settings={4: 10}) as http:
        upload = asyncio.create_task(http.post("/up", content=bytes(25)))
        asked = await http.seen("/up")
        (service,) = http.services
        await until(lambda: len(asked.body) == 10 or asked.is_whole)
        if not asked.is_whole:  # else the request had gone out before the settings came in
            await service.send(frames.SettingsFrame(0, settings={4: 25}))
            await until(lambda: asked.is_whole)
        await service.answer(asked)
        assert (await upload).text == "/up"


async def test_a_service_that_takes_no_answers_to_its_pings_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http2_connection, "_MAX_UNSENT", -1)
    async with wired2(never) as http:
        task = asyncio.create_task(http.get("/x"))
        await http.seen("/x")
        (service,) = http.services
        await service.send(frames.PingFrame(0, bytes(8)))
        await settled(http)
        assert not task.done()  # what is asked for is taken as well
        (connection,) = http.wire._pool._connections
        connection.pause_writing()
        await service.send(frames.PingFrame(0, bytes(8)))
        with pytest.raises(RemoteProtocolViolationError, match="reads nothing of what it asks"):
            await task


@pytest.mark.parametrize("timeout", [None, 5.0])
async def test_no_timer_outlives_what_it_was_for(timeout: Any) -> None:
    clock = FakeClock()
    async with wired2(clock=clock, timeout=timeout) as http:
        for _ in range(3):
            await http.get("/x")
        assert clock.pending <= 2  # one of the connection, one of the pool
        await http.wire.aclose()
        await turns()
        assert clock.pending == 0
