"""HTTP/2 on the wire with a service that another implementation of it speaks for."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import httpx
import pytest

from shared.infrastructure.http import ConnectionPoolConfig, EnhancedHTTPClient, WireTransport
from shared.infrastructure.http.httpx2 import EnhancedHTTPClient as EnhancedHTTPClient2
from shared.infrastructure.http.httpx2 import WireTransport as WireTransport2
from tests.local_tls import client_tls, server_tls
from tests.raw_server import turns, until

NO_RETRIES = {"retry_config": None}


class Echo(asyncio.Protocol):
    """Answers a request with its body, or its path; `drain_after` requests it says goodbye."""

    def __init__(self, house: "House") -> None:
        self._house = house
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self._bodies: dict[int, bytearray] = {}
        self._heads: dict[int, dict[bytes, bytes]] = {}
        self._unsent: dict[int, memoryview] = {}
        self._served = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._house.connections += 1
        self._transport: Any = transport
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self._house.streams},
        )
        self._h2.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self._house.complaints.append(error)
            self._flush()
            self._transport.close()
            return
        for event in events:
            self._take(event)
        self._flush()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._bodies[event.stream_id] = bytearray()
            self._heads[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if event.stream_id in self._bodies:
                self._bodies[event.stream_id] += event.data
        elif isinstance(event, h2.events.StreamEnded):
            asyncio.get_running_loop().call_later(
                self._house.delay(), self._answer, event.stream_id
            )
        elif isinstance(event, h2.events.StreamReset):
            self._bodies.pop(event.stream_id, None)
            self._unsent.pop(event.stream_id, None)
            self._house.resets += 1
        elif isinstance(event, h2.events.WindowUpdated):
            for stream in list(self._unsent):
                self._send(stream)

    def _answer(self, stream: int) -> None:
        body = self._bodies.pop(stream, None)
        if body is None or self._transport.is_closing():
            return
        path = self._heads.pop(stream)[b":path"]
        content = bytes(body) or path
        self._h2.send_headers(stream, [(":status", "200"), ("content-length", str(len(content)))])
        self._unsent[stream] = memoryview(content)
        self._send(stream)
        self._served += 1
        if self._served == self._house.drain_after:
            self._leave()
        self._flush()

    def _send(self, stream: int) -> None:
        left = self._unsent[stream]
        while left and (room := self._h2.local_flow_control_window(stream)) > 0:
            size = min(room, 16_384, len(left))
            self._h2.send_data(stream, bytes(left[:size]))
            left = left[size:]
        self._unsent[stream] = left
        if not left:
            del self._unsent[stream]
            self._h2.end_stream(stream)

    def _leave(self) -> None:
        """Say goodbye as a service does that goes away, and answer what has come in by then."""
        last = self._h2.highest_inbound_stream_id
        self._flush()
        # Not by `close_connection`: h2 would answer nobody from then on.
        head = (8).to_bytes(3, "big") + b"\x07\x00" + bytes(4)
        self._transport.write(head + last.to_bytes(4, "big") + bytes(4))

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._transport.write(data)


class House:
    """A service, and what it has met."""

    def __init__(self, *, streams: int, drain_after: int, slowness: float) -> None:
        self.streams = streams
        self.drain_after = drain_after
        self.connections = 0
        self.resets = 0
        self.complaints: list[Exception] = []
        self.url = ""
        self._slowness = slowness
        self._rng = random.Random(5)

    def delay(self) -> float:
        return self._rng.random() * self._slowness


@asynccontextmanager
async def house(
    *, streams: int = 100, drain_after: int = 0, slowness: float = 0.0
) -> AsyncIterator[House]:
    one = House(streams=streams, drain_after=drain_after, slowness=slowness)
    loop = asyncio.get_running_loop()
    tls = server_tls("h2", "http/1.1")
    server = await loop.create_server(lambda: Echo(one), "127.0.0.1", 0, ssl=tls)
    one.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield one
    finally:
        server.close()
    assert one.complaints == []


FLAVOURS = pytest.mark.parametrize(
    ("client", "transport"),
    [(EnhancedHTTPClient, WireTransport), (EnhancedHTTPClient2, WireTransport2)],
    ids=["httpx", "httpx2"],
)


@FLAVOURS
async def test_many_requests_share_one_connection(client: Any, transport: Any) -> None:
    wire = transport(tls=client_tls(), http2=True)
    async with (
        house(streams=30, slowness=0.01) as there,
        client("echo", there.url, transport=wire, **NO_RETRIES) as http,
    ):
        answers = await asyncio.gather(*(http.get(f"/{number}") for number in range(300)))
        assert [answer.text for answer in answers] == [f"/{number}" for number in range(300)]
        assert {answer.http_version for answer in answers} == {"HTTP/2"}
        assert there.connections == 1
        assert wire.stats()["reused"] == 299


async def test_big_bodies_go_both_ways_over_http2_side_by_side() -> None:
    content = random.Random(1).randbytes(3_000_000)
    wire = WireTransport(tls=client_tls(), http2=True)
    async with (
        house() as there,
        httpx.AsyncClient(transport=wire, base_url=there.url, timeout=30) as http,
    ):
        posts = [http.post("/x", content=content[: len(content) // n]) for n in (1, 2, 3)]
        answers = await asyncio.gather(*posts, http.get("/small"))
        for n, answer in zip((1, 2, 3), answers, strict=False):
            assert answer.content == content[: len(content) // n]
        assert answers[3].text == "/small"
        assert there.connections == 1


@FLAVOURS
async def test_no_request_fails_while_services_come_and_go(client: Any, transport: Any) -> None:
    wire = transport(tls=client_tls(), http2=True)
    async with (
        house(drain_after=50, slowness=0.005) as there,
        client("echo", there.url, transport=wire, **NO_RETRIES) as http,
    ):

        async def caller(name: int) -> None:
            for number in range(40):
                content = b"%d/%d" % (name, number)
                assert (await http.post("/x", content=content)).content == content

        await asyncio.gather(*(caller(name) for name in range(20)))
        assert there.connections >= 10
        assert http.get_status()["circuit_breaker"]["window_failures"] == 0


async def test_1000_cancellations_leave_one_connection_that_serves() -> None:
    rng = random.Random(3)
    wire = WireTransport(ConnectionPoolConfig(max_connections=2), tls=client_tls(), http2=True)
    async with (
        house(streams=20, slowness=0.002) as there,
        EnhancedHTTPClient("echo", there.url, transport=wire, retry_config=None) as http,
    ):
        cancelled = 0
        while cancelled < 1000:
            posts = [http.post("/x", content=bytes(rng.randrange(99_999))) for _ in range(40)]
            tasks = [asyncio.create_task(post) for post in posts]
            for task in rng.sample(tasks, 36):
                await turns(rng.randrange(3))
                cancelled += task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: wire.stats()["open"] == wire.stats()["idle"] == 1)
        assert (wire.stats()["connecting"], wire.stats()["waiting"]) == (0, 0)
        assert http.get_status()["in_flight"] == 0
        answers = await asyncio.gather(*(http.get("/y") for _ in range(30)))
        assert {answer.text for answer in answers} == {"/y"}
        assert there.connections == 1
    assert wire.stats()["open"] == 0


async def test_a_connection_may_be_good_for_one_request() -> None:
    wire = WireTransport(tls=client_tls(), http2=True)
    async with (
        house(drain_after=1) as there,
        EnhancedHTTPClient("echo", there.url, transport=wire, retry_config=None) as http,
    ):
        for number in range(5):
            assert (await http.get(f"/{number}")).text == f"/{number}"
        assert http.get_status()["circuit_breaker"]["window_failures"] == 0
