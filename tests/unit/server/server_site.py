"""An application on a real socket that streams what a test tells it to, and raw connections."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from shared.infrastructure.resilience import ServiceError
from shared.infrastructure.server import (
    App,
    HTTPError,
    Keyring,
    Problem,
    Problems,
    Reply,
    Request,
    Route,
    ServerConfig,
    StreamedReply,
    json_reply,
)
from shared.infrastructure.server.listener import Listener
from shared.infrastructure.server.metrics import RequestMetrics

STREAM = b"POST /stream HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
PLAIN = b"GET /plain/x HTTP/1.1\r\nHost: a\r\n\r\n"
SSE = ((b"content-type", b"text/event-stream"),)


class Source:
    """Pieces of a streamed body, put in by the test; an exception among them is raised."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.taken = 0
        self.cancelled = self.closed = 0

    async def body(self) -> AsyncIterator[bytes]:
        try:
            while (piece := await self.pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                self.taken += 1
                yield piece
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def close(self) -> None:
        self.closed += 1

    def put(self, *pieces: bytes | Exception | None) -> None:
        for piece in pieces:
            self.pieces.put_nowait(piece)


class StreamingApp(App):
    def __init__(self, config: ServerConfig) -> None:
        self.counts: list[tuple[str, int]] = []
        problems = Problems(Problem((ServiceError,), 502, "the source failed"))
        super().__init__(config, Keyring(()), RequestMetrics("test"), problems)
        self.source = Source()
        post: dict[str, Any] = {"method": "POST", "summary": "", "response": "Any"}
        self.routes["/stream"] = Route(handler=self._stream, **post)
        self.routes["/plain/{name}"] = Route(
            method="GET", handler=self._plain, summary="", response="Any"
        )

    def observe(self, request: Request, status: int) -> None:
        self.counts.append((request.template, status))
        super().observe(request, status)

    async def _stream(self, _request: Request) -> StreamedReply:
        source = self.source
        return StreamedReply(source.body(), source.close, headers=SSE)

    async def _plain(self, request: Request) -> Reply:
        if request.params["name"] == "wrong":
            raise HTTPError(400, "wrong")
        return json_reply(dict(request.params))


class Site:
    def __init__(self, config: ServerConfig) -> None:
        self.app = StreamingApp(config)
        self.source = self.app.source
        self.listener = Listener(self.app)
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(
        self, *, buffer: int = 2**20
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.sock.getsockname())
        reader, writer = await asyncio.open_connection(sock=sock, limit=buffer)
        self.writers.append(writer)
        return reader, writer

    async def ask(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.connect()
        writer.write(data)
        return reader, writer


@asynccontextmanager
async def site(**config: Any) -> AsyncIterator[Site]:
    running = Site(ServerConfig(**config))
    await running.listener.start(running.sock)
    try:
        async with asyncio.timeout(20):
            yield running
    finally:
        for writer in running.writers:
            writer.transport.abort()
        await asyncio.sleep(0)
        running.listener.close()
        await running.listener.abandon()
        for writer in running.writers:
            with suppress(OSError):
                await writer.wait_closed()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is the other side's state
            await asyncio.sleep(0.005)


async def head_of(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\r\n\r\n")).decode().lower()
