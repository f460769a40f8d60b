"""The process on a real socket, and raw connections to it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from process_service import ScriptedService

from services.embedding import EmbeddingSettings, ProductionEmbeddingService
from services.embedding.process import EmbeddingApp
from shared.infrastructure.server.listener import Listener

BODY = b'{"input": "a"}'
POST = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n" + BODY
LIVE = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"


class Site:
    """The process on a real socket, and raw connections to it."""

    def __init__(self, settings: EmbeddingSettings, keep_alive: float) -> None:
        self.service = ScriptedService(settings)
        self.app = EmbeddingApp(cast("ProductionEmbeddingService", self.service))
        self.app.config = self.app.config.model_copy(update={"keep_alive": keep_alive})
        self.listener = Listener(self.app)
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.sock.bind(("127.0.0.1", 0))
        self.address = self.sock.getsockname()
        self.wires: list[Wire] = []

    async def connect(self) -> "Wire":
        host, port = self.address
        wire = Wire(*await asyncio.open_connection(host, port, limit=2**24))
        self.wires.append(wire)
        return wire


class Wire:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the headers and the body of the next reply."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            size = int(headers.get("content-length", 0)) if has_body else 0
            return int(head[0].split()[1]), headers, await self.reader.readexactly(size)

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        self.send(data)
        return await self.reply()

    async def is_closed(self) -> bool:
        """Wait for the end, with nothing before it."""
        async with asyncio.timeout(10):
            return await self.reader.read() == b""

    def reset(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def site(*, keep_alive: float = 75, **settings: Any) -> AsyncIterator[Site]:
    running = Site(EmbeddingSettings(**settings), keep_alive)
    await running.listener.start(running.sock)
    try:
        yield running
    finally:
        for wire in running.wires:
            wire.reset()
        await asyncio.sleep(0)
        running.listener.close()
        await running.listener.abandon()
        running.sock.close()


@asynccontextmanager
async def wire(**settings: Any) -> AsyncIterator[tuple[Site, Wire]]:
    async with site(**settings) as running:
        yield running, await running.connect()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is the other side's state
            await asyncio.sleep(0.005)
