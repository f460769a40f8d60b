"""An httpx client on the wire that speaks HTTP/2 with a script, and must leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import hpack
from hyperframe import frame as frames

from shared.infrastructure.http import WireTransport
from shared.infrastructure.http.config import ConnectionPoolConfig
from shared.infrastructure.http.wire.frames import PREFACE
from tests.local_tls import client_tls, server_tls
from tests.raw_server import Peer, RawServer, raw_server, turns, until
from tests.unit.http.wire.http2_said import data
from tests.unit.http.wire.wired import NOTHING, Wired, left_over


class Asked:
    """A request as far as it has arrived.

    Attributes:
        id: Number of its stream.
        fields: Its fields, in order.
        body: Its body so far.
        is_whole: It is complete.
        reset: Code it was reset with.
    """

    def __init__(self, number: int, fields: list[tuple[str, str]]) -> None:
        self.id = number
        self.fields = fields
        self.body = b""
        self.is_whole = False
        self.reset: int | None = None

    @property
    def path(self) -> str:
        return dict(self.fields)[":path"]


class Service:
    """The service's end of a connection: hears everything, and says what a script says.

    Attributes:
        peer: The bytes below.
        asked: Requests by the number of their stream.
        windows: Bytes granted, by stream; 0 is the connection.
        goodbye: Code the client said goodbye with.
        opens_window: Whether what was received is granted anew.
    """

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.asked: dict[int, Asked] = {}
        self.windows: dict[int, int] = {}
        self.goodbye: int | None = None
        self.opens_window = True
        self.requests: asyncio.Queue[Asked] = asyncio.Queue()
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()

    def head(self, stream: Asked, status: int = 200, *fields: tuple[str, str]) -> frames.Frame:
        block = self._encoder.encode([(":status", str(status)), *fields])
        return frames.HeadersFrame(stream.id, block, flags=["END_HEADERS"])

    async def send(self, *said: frames.Frame | bytes) -> None:
        data = b"".join(one if isinstance(one, bytes) else one.serialize() for one in said)
        await self.peer.send(data)

    async def answer(self, stream: Asked, *fields: tuple[str, str]) -> None:
        """Answer a request with its path."""
        body = data(stream.id, stream.path.encode(), end=True)
        await self.send(self.head(stream, 200, *fields), body)

    async def listen(self) -> None:
        """Hear what the client says until it goes away."""
        reader = self.peer.reader
        assert await reader.readexactly(len(PREFACE)) == PREFACE
        while True:
            start = await reader.readexactly(9)
            frame, length = frames.Frame.parse_frame_header(memoryview(start))
            frame.parse_body(memoryview(await reader.readexactly(length)))
            await self._hear(frame)

    async def _hear(self, frame: frames.Frame) -> None:
        stream = self.asked.get(frame.stream_id)
        if isinstance(frame, frames.HeadersFrame):
            fields = [(str(n), str(v)) for n, v in self._decoder.decode(frame.data)]
            stream = self.asked[frame.stream_id] = Asked(frame.stream_id, fields)
            self.requests.put_nowait(stream)
        elif isinstance(frame, frames.DataFrame) and stream:
            stream.body += frame.data
            if self.opens_window and frame.data:
                await self.send(window(0, len(frame.data)), window(stream.id, len(frame.data)))
        elif isinstance(frame, frames.RstStreamFrame) and stream:
            stream.reset = frame.error_code
        elif isinstance(frame, frames.WindowUpdateFrame):
            granted = self.windows.get(frame.stream_id, 0)
            self.windows[frame.stream_id] = granted + frame.window_increment
        elif isinstance(frame, frames.SettingsFrame) and "ACK" not in frame.flags:
            await self.send(frames.SettingsFrame(0, flags=["ACK"]))
        elif isinstance(frame, frames.GoAwayFrame):
            self.goodbye = frame.error_code
        if stream and "END_STREAM" in frame.flags:
            stream.is_whole = True


def window(stream: int, size: int) -> frames.Frame:
    return frames.WindowUpdateFrame(stream, size)


def goaway(last: int, code: int = 0) -> frames.Frame:
    return frames.GoAwayFrame(0, last_stream_id=last, error_code=code)


def rst(stream: Asked, code: int) -> frames.Frame:
    return frames.RstStreamFrame(stream.id, code)


Play = Callable[[Service, Asked], Awaitable[object]]
"""Answers a request."""


class Wired2(Wired):
    """A client, its transport and the services it talks to, one for each connection."""

    def __init__(
        self, transport: WireTransport, server: RawServer, services: list[Service], **options: Any
    ) -> None:
        super().__init__(transport, server, **options)
        self.services = services

    def asked(self) -> list[Asked]:
        return [one for service in self.services for one in service.asked.values()]

    async def seen(self, path: str) -> Asked:
        """Wait until a request for `path` has arrived."""
        await until(lambda: any(one.path == path for one in self.asked()))
        return next(one for one in self.asked() if one.path == path)


@asynccontextmanager
async def wired2(
    *plays: Play,
    paths: dict[str, Play] | None = None,
    most: int = 100,
    keep: int = 20,
    expiry: float = 5.0,
    settings: dict[int, int] | None = None,
    **options: Any,
) -> AsyncIterator[Wired2]:
    """Lend a client of a service that answers all requests side by side.

    Args:
        plays: Answers requests of the first connection, of the second, and so on; the last one
            those of all others. Without any, each is answered with its path.
        paths: Answer certain paths.
        most: Connections.
        keep: Connections kept.
        expiry: Seconds they are kept.
        settings: What the service sets; None as a play says nothing of it.
        options: Of the transport; and `timeout`.
    """
    pool = ConnectionPoolConfig(
        max_connections=most, max_keepalive_connections=keep, keepalive_expiry=expiry
    )
    timeout = options.pop("timeout", 5.0)
    services: list[Service] = []

    async def script(peer: Peer) -> None:
        service = Service(peer)
        play = plays[min(len(services), len(plays) - 1)] if plays else Service.answer
        services.append(service)
        await service.send(frames.SettingsFrame(0, settings=settings or {}))
        async with asyncio.TaskGroup() as under_way:
            listening = under_way.create_task(service.listen())
            while True:
                taking = under_way.create_task(service.requests.get())
                await asyncio.wait([taking, listening], return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    break
                stream = taking.result()
                one = (paths or {}).get(stream.path.partition("?")[0], play)
                under_way.create_task(_played(one, service, stream))

    async with raw_server(_quiet(script), tls=server_tls("h2", "http/1.1")) as server:
        before = asyncio.all_tasks()
        wire = WireTransport(pool, tls=client_tls(), http2=True, **options)
        async with Wired2(wire, server, services, timeout=timeout) as client:
            yield client
        assert left_over(wire) == NOTHING
        await turns()
        own = ("_serve", "listen", "Queue.get", "_played")
        new = asyncio.all_tasks() - before
        assert not [task for task in new if not any(name in repr(task) for name in own)]


async def _played(play: Play, service: Service, stream: Asked) -> None:
    await play(service, stream)


def _quiet(script: Callable[[Peer], Awaitable[None]]) -> Callable[[Peer], Awaitable[None]]:
    """Take for nothing that the client went away; what an assertion said is raised."""

    async def quiet(peer: Peer) -> None:
        try:
            await script(peer)
        except* (asyncio.IncompleteReadError, ConnectionError):
            pass

    return quiet


async def never(_service: Service, _stream: Asked) -> None:
    """Say nothing."""


async def hang_up(service: Service, _stream: Asked) -> None:
    """Close the connection."""
    service.peer.writer.close()


async def reset_connection(service: Service, _stream: Asked) -> None:
    service.peer.reset()
