import asyncio

import httpx
import pytest

from shared.infrastructure.http import (
    ConnectFailedError,
    PoolTimeoutError,
    ReadFailedError,
    WireTransport,
    WriteFailedError,
)
from shared.infrastructure.http.config import ConnectionPoolConfig
from shared.infrastructure.http.wire.connection import Connection
from shared.infrastructure.resilience import ConfigurationError
from shared.infrastructure.testing import FakeClock
from tests.raw_server import OK, Peer, Script, answering, once, raw_server, silent, turns, until
from tests.unit.http.wire.wired import NOTHING, left_over, wired


def gated(gate: asyncio.Event, order: list[bytes] | None = None) -> Script:
    """Answer nobody before the gate opens; note who asks."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if order is not None:
                order.append(request.split(b" ")[1])
            await gate.wait()
            await peer.send(OK)

    return script


async def test_there_are_never_more_sockets_than_connections_allowed() -> None:
    gate = asyncio.Event()
    async with wired(gated(gate), most=5, keep=5) as http:
        tasks = [asyncio.create_task(http.get("/x")) for _ in range(30)]
        await until(lambda: http.stats("open", "connecting", "waiting") == [5, 0, 25])
        gate.set()
        assert {response.status_code for response in await asyncio.gather(*tasks)} == {200}
        assert http.server.most_open == 5
        assert http.stats("open", "idle", "requests", "reused") == [5, 5, 30, 25]


@pytest.mark.parametrize("answer", [OK, OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")])
async def test_requests_that_wait_are_served_in_the_order_they_came(answer: bytes) -> None:
    order: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            order.append((await peer.request()).split(b" ")[1])
            await peer.send(answer)

    async with wired(script, most=1) as http:
        paths = [f"/{number}" for number in range(20)]
        await asyncio.gather(*(http.get(path) for path in paths))
        assert order == [path.encode() for path in paths]
        assert http.server.most_open == 1


async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    gate, order = asyncio.Event(), list[bytes]()
    async with wired(gated(gate, order), most=1) as http:

        async def again() -> None:
            await http.get("/first")
            await http.get("/newcomer")

        tasks = [asyncio.create_task(again())]
        await until(lambda: order == [b"/first"])
        tasks += [asyncio.create_task(http.get(f"/{number}")) for number in range(3)]
        await until(lambda: http.stats("waiting") == [3])
        gate.set()
        await asyncio.gather(*tasks)
        assert order == [b"/first", b"/0", b"/1", b"/2", b"/newcomer"]


async def test_a_waiter_that_is_cancelled_lets_the_others_move_up() -> None:
    gate, order = asyncio.Event(), list[bytes]()
    async with wired(gated(gate, order), most=1) as http:
        tasks = [asyncio.create_task(http.get(f"/{number}")) for number in range(5)]
        await until(lambda: http.stats("waiting") == [4])
        tasks[1].cancel()
        tasks[3].cancel()
        await turns(2)
        assert http.stats("waiting") == [2]
        gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [b"/0", b"/2", b"/4"]


async def test_a_pool_that_stays_full_is_a_pool_timeout_and_nothing_was_sent() -> None:
    clock = FakeClock()
    async with wired(silent, most=1, clock=clock, timeout=httpx.Timeout(60, pool=2)) as http:
        first = asyncio.create_task(http.get("/x"))
        await until(lambda: http.stats("open") == [1])
        second = asyncio.create_task(http.get("/y"))
        await turns()
        await clock.advance(1.9)
        assert http.stats("waiting") == [1]
        await clock.advance(0.2)
        with pytest.raises(PoolTimeoutError, match="all 1 connections stayed busy for 2 s") as got:
            await second
        assert isinstance(got.value, httpx.PoolTimeout)
        assert (got.value.phase, got.value.unsent) == ("pool", True)
        assert http.stats("waiting") == [0]
        first.cancel()


async def test_only_so_many_idle_connections_are_kept() -> None:
    gate = asyncio.Event()
    async with wired(gated(gate), most=10, keep=3) as http:
        tasks = [asyncio.create_task(http.get("/x")) for _ in range(10)]
        await until(lambda: http.stats("open", "connecting") == [10, 0])
        gate.set()
        await asyncio.gather(*tasks)
        await until(lambda: http.stats("open", "idle") == [3, 3])


async def test_those_who_go_on_asking_keep_their_connections_whatever_is_kept_idle() -> None:
    async with wired(answering(OK), most=10, keep=1) as http:

        async def caller() -> None:
            for _ in range(20):
                await http.get("/x")

        await asyncio.gather(*(caller() for _ in range(10)))
        assert len(http.server.peers) < 40


async def test_none_is_kept_if_none_may_be_idle() -> None:
    async with wired(answering(OK), keep=0) as http:
        for _ in range(3):
            await http.get("/x")
        await turns()
        assert http.stats("open", "idle", "reused") == [0, 0, 0]
        assert len(http.server.peers) == 3


async def test_an_idle_connection_is_closed_when_it_expires_and_not_before() -> None:
    clock = FakeClock()
    async with wired(answering(OK), expiry=5.0, clock=clock) as http:
        await http.get("/x")
        await clock.advance(3.0)
        await http.get("/x")
        await clock.advance(4.9)
        assert http.stats("open", "idle", "reused") == [1, 1, 1]
        await clock.advance(0.2)
        assert http.stats("open", "idle") == [0, 0]
        await http.get("/x")
        assert http.stats("reused") == [1]


async def test_an_expired_connection_is_not_used_even_if_nobody_has_closed_it_yet() -> None:
    clock = FakeClock()
    async with wired(answering(OK), expiry=5.0, clock=clock) as http:
        await http.get("/x")
        clock.stall(5.1)
        await http.get("/x")
        await turns()
        assert http.stats("open", "reused") == [1, 0]


async def test_the_connection_used_last_is_used_first() -> None:
    gate = asyncio.Event()
    async with wired(gated(gate)) as http:
        tasks = [asyncio.create_task(http.get("/x")) for _ in range(3)]
        await until(lambda: http.stats("open", "connecting") == [3, 0])
        gate.set()
        await asyncio.gather(*tasks)
        used = next(reversed(*http.wire._pool._idle.values()))
        for _ in range(5):
            await http.get("/x")
        assert used.carried == 6


async def test_an_idle_connection_elsewhere_makes_room_when_the_pool_is_full() -> None:
    async with raw_server(answering(OK)) as other, wired(answering(OK), most=3, keep=3) as http:
        for _ in range(2):
            await asyncio.gather(*(http.get("/x") for _ in range(3)))
            assert (await http.get(f"{other.url}/y")).text == "ok"
            assert http.stats("open", "idle") == [3, 3]
        assert (len(http.server.peers), len(other.peers)) == (4, 2)
        assert http.stats("reused") == [2]


async def test_it_is_the_one_longest_idle_that_makes_room() -> None:
    clock = FakeClock()
    async with (
        raw_server(answering(OK)) as old,
        raw_server(answering(OK)) as young,
        wired(answering(OK), most=2, clock=clock) as http,
    ):
        for server in (young, old, young):
            await http.get(server.url)
            await clock.advance(1.0)
        await http.get("/x")
        await http.get(young.url)
        assert (len(young.peers), len(old.peers)) == (1, 1)
        assert http.stats("open", "reused") == [2, 2]


async def test_a_socket_is_closed_before_the_one_it_makes_room_for_is_opened() -> None:
    async with raw_server(answering(OK)) as other, wired(answering(OK), most=1) as http:
        for _ in range(5):
            await http.get("/x")
            await http.get(f"{other.url}/y")
        assert http.stats("open", "requests", "reused") == [1, 10, 0]


async def test_a_slot_comes_back_when_no_connection_could_be_opened() -> None:
    async with raw_server(silent) as gone:
        pass
    async with wired(answering(OK), most=1) as http:
        for _ in range(3):
            with pytest.raises(ConnectFailedError):
                await http.get(gone.url)
        assert (await http.get("/x")).text == "ok"


@pytest.mark.parametrize("count", [0, 1, 20])
@pytest.mark.parametrize("place", ["_connect", "_connector.connect"])
async def test_a_connection_that_is_lost_before_it_is_used_takes_nothing_with_it(
    place: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with wired(answering(OK), most=1) as http:
        pool = http.wire._pool
        owner = pool if place == "_connect" else pool._connector
        connect = getattr(owner, place.rpartition(".")[2])

        async def losing(*arguments: object) -> Connection:
            connection: Connection = await connect(*arguments)
            connection.close()
            await turns(count)
            return connection

        monkeypatch.setattr(owner, connect.__name__, losing)
        for _ in range(3):
            with pytest.raises(WriteFailedError):
                await http.get("/x", timeout=None)
        await turns()
        assert pool._slots.in_flight == 0
        monkeypatch.undo()
        assert (await http.get("/x")).text == "ok"
        assert http.stats("open", "idle") == [1, 1]


async def test_closing_ends_requests_in_use_in_line_and_in_the_making() -> None:
    resolving = asyncio.Event()

    async def never(*_: object, **__: object) -> list[object]:
        resolving.set()
        return await asyncio.get_running_loop().create_future()

    async with wired(silent, most=2) as http:
        asyncio.get_running_loop().getaddrinfo = never  # type: ignore[method-assign, assignment]
        in_use = asyncio.create_task(http.get("/x"))
        connecting = asyncio.create_task(http.get("http://a.test/"))
        in_line = [asyncio.create_task(http.get("/y")) for _ in range(3)]
        await until(lambda: http.stats("open", "connecting", "waiting") == [1, 1, 3])
        await resolving.wait()
        await turns()
        await http.wire.aclose()
        assert http.stats("open", "idle", "connecting") == [0, 0, 0]
        with pytest.raises(ReadFailedError, match="client was closed"):
            await in_use
        for task in (connecting, *in_line):
            with pytest.raises(ConfigurationError, match="transport is closed"):
                await task
        with pytest.raises(ConfigurationError, match="transport is closed"):
            await http.get("/x")
        await http.wire.aclose()


@pytest.mark.parametrize("count", range(25))
async def test_closing_at_any_moment_is_never_the_fault_of_the_service(count: int) -> None:
    async with wired(silent, most=2) as http:
        tasks = [asyncio.create_task(http.get("/x")) for _ in range(4)]
        await turns(count)
        await http.wire.aclose()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, ConfigurationError | ReadFailedError)
            assert "closed" in str(outcome)
        await turns()
        assert left_over(http.wire) == NOTHING


def test_connections_belong_to_one_event_loop() -> None:
    wire = WireTransport()

    async def use(url: str) -> None:
        response = await wire.handle_async_request(httpx.Request("GET", url))
        assert await response.aread() == b"ok"

    serving = raw_server(answering(OK))
    with asyncio.Runner() as first:
        server = first.run(serving.__aenter__())
        first.run(use(server.url))
        with asyncio.Runner() as second, pytest.raises(ConfigurationError, match="event loop"):
            second.run(use(server.url))
        first.run(use(server.url))
        first.run(wire.aclose())
        first.run(serving.__aexit__(None, None, None))
    assert left_over(wire) == NOTHING


def test_a_transport_without_connections_may_move_to_another_event_loop() -> None:
    wire = WireTransport(ConnectionPoolConfig(max_keepalive_connections=0))

    async def use() -> None:
        async with raw_server(once(OK)) as server:
            response = await wire.handle_async_request(httpx.Request("GET", server.url))
            assert await response.aread() == b"ok"
            await turns()

    asyncio.run(use())
    asyncio.run(use())
