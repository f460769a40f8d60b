import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.raw_server import OK, Peer, Script, answering, silent, turns, until
from tests.unit.http.wire.wired import Wired, wired

PART = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf"


async def gives_everything_back(http: Wired, task: asyncio.Task[object]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns(2)
    assert http.stats("open", "idle", "connecting", "waiting") == [0, 0, 0, 0]


async def test_cancelled_while_the_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> list[object]:
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    async with wired(silent, most=1) as http:
        task = asyncio.create_task(http.get("http://a.test/"))
        await turns()
        await gives_everything_back(http, task)


async def test_cancelled_within_the_tls_handshake() -> None:
    async with wired(silent, most=1) as http:
        task = asyncio.create_task(http.get(http.server.url.replace("http", "https")))
        await until(lambda: len(http.server.peers) == 1)
        await turns(5)
        await gives_everything_back(http, task)


@pytest.mark.parametrize("count", range(30))
async def test_cancelled_after_any_number_of_turns(count: int) -> None:
    async with wired(answering(OK), most=1) as http:
        for _ in range(2):
            task = asyncio.create_task(http.get("/x"))
            await turns(count)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await turns(3)
            stats = dict(zip(("open", "idle"), http.stats("open", "idle"), strict=True))
            assert stats["open"] == stats["idle"]
            assert http.stats("connecting", "waiting") == [0, 0]
        assert (await http.get("/x")).text == "ok"


async def test_cancelled_while_waiting_for_the_answer() -> None:
    async with wired(silent, most=1) as http:
        task = asyncio.create_task(http.get("/x"))
        await until(lambda: http.stats("open") == [1])
        await turns()
        await gives_everything_back(http, task)
        assert await http.server.peers[0].gone() == b""


async def test_cancelled_while_reading_the_body() -> None:
    async with wired(answering(PART), most=1) as http:
        task = asyncio.create_task(http.get("/x"))
        await until(lambda: http.stats("open") == [1])
        await asyncio.sleep(0.01)
        await gives_everything_back(http, task)


async def test_cancelled_while_reading_a_streamed_body() -> None:
    async with wired(answering(PART), most=1) as http:
        response = await http.send(http.build_request("GET", "/x"), stream=True)
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"half"
        task = asyncio.ensure_future(anext(chunks))
        await turns()
        await gives_everything_back(http, task)


async def test_cancelled_while_the_service_does_not_take_the_request() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.reader._limit = 1
        await asyncio.Event().wait()

    async with wired(script, most=1) as http:
        task = asyncio.create_task(http.post("/x", content=b"x" * 30_000_000))
        await until(lambda: http.stats("open") == [1])
        await asyncio.sleep(0.01)
        await gives_everything_back(http, task)


async def test_cancelled_while_the_caller_has_not_yielded_more_of_the_request() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"some"
        await asyncio.Event().wait()

    async with wired(silent, most=1) as http:
        task = asyncio.create_task(http.post("/x", content=body()))
        await until(lambda: http.stats("open") == [1])
        await turns()
        await gives_everything_back(http, task)


async def test_cancelled_by_a_timeout_of_asyncio() -> None:
    async with wired(silent, most=1) as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await http.get("/x")
        await turns(2)
        assert http.stats("open", "waiting") == [0, 0]


async def test_cancelled_by_the_failure_of_a_sibling() -> None:
    async def fail(http: Wired) -> None:
        await until(lambda: http.stats("open", "waiting") == [2, 3])
        raise KeyError("sibling")

    async def together(http: Wired) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(http.get("/x"))
            group.create_task(fail(http))

    async with wired(silent, most=2) as http:
        with pytest.raises(ExceptionGroup):
            await together(http)
        await turns(2)
        assert http.stats("open", "connecting", "waiting") == [0, 0, 0]


def sometimes_slow(rng: random.Random) -> Script:
    """Answer at once, late, in pieces, and now and then by closing."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            dice = rng.random()
            if dice < 0.05:
                return
            if dice < 0.6:
                await asyncio.sleep(rng.random() * 0.002)
            if dice < 0.3:
                await peer.send(OK[:20], OK[20:-1])
                await asyncio.sleep(rng.random() * 0.001)
                await peer.send(OK[-1:])
            else:
                await peer.send(OK)

    return script


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
async def test_3000_cancellations_on_a_pool_of_10_leave_nothing_behind() -> None:
    rng = random.Random(20)
    async with wired(sometimes_slow(rng), most=10, keep=10) as http:
        files, tasks_before = open_files(), len(asyncio.all_tasks())
        cancelled = 0
        while cancelled < 3000:
            tasks = [asyncio.create_task(http.get("/x")) for _ in range(50)]
            for task in rng.sample(tasks, 45):
                await turns(rng.randrange(3))
                cancelled += task.cancel()
                assert sum(http.stats("open", "connecting")) <= 10
            await asyncio.gather(*tasks, return_exceptions=True)
            assert http.stats("connecting", "waiting") == [0, 0]
        await turns(3)
        open_ones, idle = http.stats("open", "idle")
        assert open_ones == idle <= 10
        responses = await asyncio.gather(
            *(http.get("/x") for _ in range(30)), return_exceptions=True
        )
        assert sum(getattr(response, "status_code", 0) == 200 for response in responses) > 15
        await http.wire.aclose()
        await until(lambda: len(asyncio.all_tasks()) <= tasks_before)
        await until(lambda: open_files() <= files)
