import asyncio
import errno
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.infrastructure.http import ConnectFailedError, WireTransport
from shared.infrastructure.resilience import CallRefusedError
from shared.infrastructure.testing import FakeClock
from tests.raw_server import OK, answering, raw_server, silent, turns, until
from tests.unit.http.wire.wired import wired


def resolving(monkeypatch: pytest.MonkeyPatch, addresses: Iterable[str]) -> None:
    """Make every name mean `addresses`."""

    async def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        families = {True: socket.AF_INET6, False: socket.AF_INET}
        kind = socket.SOCK_STREAM
        return [(families[":" in ip], kind, 6, "", (ip, port)) for ip in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


class Connects:
    """Replaces connecting: an address is refused, answers, or keeps silent for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **outcomes: OSError | None) -> None:
        loop = asyncio.get_running_loop()
        self._outcomes = {key.replace("_", "."): value for key, value in outcomes.items()}
        self._connect = loop.sock_connect
        self.tried: list[str] = []
        self.sockets: list[socket.socket] = []
        self.gate = asyncio.Event()
        self.gate.set()
        monkeypatch.setattr(loop, "sock_connect", self.connect)

    async def connect(self, sock: socket.socket, address: tuple[str, int]) -> None:
        ip, port = address
        self.tried.append(ip)
        self.sockets.append(sock)
        await self.gate.wait()
        name = "ip" + ip
        if name not in self._outcomes:
            await asyncio.get_running_loop().create_future()
        if (error := self._outcomes[name]) is not None:
            raise error
        await self._connect(sock, ("127.0.0.1", port))

    def all_closed_but(self, count: int) -> bool:
        return sum(sock.fileno() >= 0 for sock in self.sockets) == count


def port_of(url: str) -> int:
    return httpx.URL(url).port or 0


async def test_a_refused_connection_says_so() -> None:
    async with raw_server(silent) as gone:
        pass
    async with wired(silent) as http:
        with pytest.raises(ConnectFailedError, match="connection refused") as caught:
            await http.get(gone.url)
        assert isinstance(caught.value, httpx.ConnectError)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
        assert (caught.value.phase, caught.value.unsent) == ("connect", True)


async def test_an_unknown_name_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    async with wired(silent) as http:
        with pytest.raises(ConnectFailedError, match="no address for this name: Name or service"):
            await http.get("http://a.test/")


async def test_a_name_that_cannot_be_one_says_so() -> None:
    async with wired(silent) as http:
        with pytest.raises(ConnectFailedError, match="not a valid one"):
            await http.get(f"http://{'a' * 70}.test/")


@pytest.mark.parametrize("code", [errno.ENETUNREACH, errno.EHOSTUNREACH])
async def test_an_unreachable_address_says_so(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    Connects(monkeypatch, ip127_0_0_1=OSError(code, os.strerror(code)))
    async with wired(silent) as http:
        with pytest.raises(ConnectFailedError, match="unreachable: "):
            await http.get("/x")


async def test_a_refused_address_is_followed_by_the_next_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    connects = Connects(monkeypatch, ip10_0_0_1=ConnectionRefusedError(), ip10_0_0_2=None)
    resolving(monkeypatch, ["10.0.0.1", "10.0.0.2"])
    async with wired(answering(OK), clock=clock) as http:
        response = await http.get(f"http://a.test:{port_of(http.server.url)}/")
        assert response.text == "ok"
        assert connects.tried == ["10.0.0.1", "10.0.0.2"]
        assert connects.all_closed_but(1)


async def test_a_silent_address_gets_a_head_start_and_loses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    connects = Connects(monkeypatch, ip10_0_0_2=None)
    resolving(monkeypatch, ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    async with wired(answering(OK), clock=clock) as http:
        task = asyncio.create_task(http.get(f"http://a.test:{port_of(http.server.url)}/"))
        await turns()
        await clock.advance(0.24)
        assert connects.tried == ["10.0.0.1"]
        await clock.advance(0.02)
        assert (await task).text == "ok"
        assert connects.tried == ["10.0.0.1", "10.0.0.2"]
        await turns(3)
        assert connects.all_closed_but(1)
        await http.aclose()
        assert clock.pending == 0


async def test_of_two_addresses_that_answer_at_once_one_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    connects = Connects(monkeypatch, ip10_0_0_1=None, ip10_0_0_2=None)
    connects.gate.clear()

    async def connected(sock: socket.socket, address: tuple[str, int]) -> None:
        sock.setblocking(True)
        sock.connect(address)
        sock.setblocking(False)

    connects._connect = connected
    resolving(monkeypatch, ["10.0.0.1", "10.0.0.2"])
    async with wired(answering(OK), clock=clock) as http:
        task = asyncio.create_task(http.get(f"http://a.test:{port_of(http.server.url)}/"))
        await turns()
        await clock.advance(0.3)
        assert len(connects.tried) == 2
        connects.gate.set()
        assert (await task).text == "ok"
        assert connects.all_closed_but(1)


async def test_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = dict.fromkeys(["ip::1", "ip::2", "ip10.0.0.1"], ConnectionRefusedError())
    connects = Connects(monkeypatch)
    connects._outcomes = refused
    resolving(monkeypatch, ["::1", "::2", "10.0.0.1"])
    async with wired(silent) as http:
        with pytest.raises(ConnectFailedError, match="connection refused"):
            await http.get("http://a.test/")
        assert connects.tried == ["::1", "10.0.0.1", "::2"]
        assert connects.all_closed_but(0)


async def test_a_race_that_is_cancelled_closes_every_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    connects = Connects(monkeypatch)
    resolving(monkeypatch, ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    async with wired(silent, clock=clock) as http:
        task = asyncio.create_task(http.get("http://a.test/", timeout=None))
        await turns()
        await clock.advance(1.0)
        assert connects.all_closed_but(3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await turns(3)
        assert connects.all_closed_but(0)


async def test_a_guard_sees_every_address_before_any_of_them_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connects = Connects(monkeypatch)
    seen: list[str] = []

    def guard(ip: str) -> None:
        seen.append(ip)
        if ip.startswith("169.254."):
            raise CallRefusedError(f"{ip} is none of your business")

    resolving(monkeypatch, ["10.0.0.1", "169.254.169.254"])
    async with wired(silent, most=1, check_address=guard) as http:
        for url in ("http://a.test/", "http://169.254.169.254/"):
            with pytest.raises(CallRefusedError, match="none of your business"):
                await http.get(url)
        assert seen == ["10.0.0.1", "169.254.169.254", "169.254.169.254"]
        assert connects.tried == []
        assert http.stats("open", "connecting") == [0, 0]


async def test_a_unix_socket_stands_for_every_host(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with raw_server(answering(OK), uds=path) as server:
        wire = WireTransport(uds=path)
        async with httpx.AsyncClient(transport=wire) as http:
            assert (await http.get("http://a.test/x")).text == "ok"
            assert (await http.get("http://a.test/y")).text == "ok"
        assert len(server.peers) == 1
    async with httpx.AsyncClient(transport=WireTransport(uds=path + "-gone")) as http:
        with pytest.raises(ConnectFailedError, match="No such file"):
            await http.get("http://a.test/x")


async def test_small_packets_are_not_held_back() -> None:
    async with wired(answering(OK)) as http:
        await http.get("/x")
        (connection,) = http.wire._pool._connections
        assert connection._transport is not None
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_request_counts_as_sent_when_the_kernel_has_it() -> None:
    async with wired(answering(OK)) as http:
        await http.get("/x")
        (connection,) = http.wire._pool._connections
        assert isinstance(connection._transport, asyncio.Transport)
        assert connection._transport.get_write_buffer_limits() == (0, 1)


async def test_a_service_that_hangs_up_at_once_is_not_waited_for() -> None:
    async def script(peer: object) -> None:
        return

    async with wired(script, most=1) as http:
        for _ in range(5):
            with pytest.raises(httpx.TransportError):
                await http.get("/x")
            await until(lambda: http.stats("open", "connecting") == [0, 0])
