"""A server on a real socket that does to each connection exactly what its script says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """The server's end of one connection.

    Attributes:
        number: Connections accepted before this one.
    """

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """Read the head of the next request."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def body(self, size: int) -> bytes:
        return await self.reader.readexactly(size)

    async def send(self, *pieces: bytes) -> None:
        """Send each piece by itself, as far as TCP can be told."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def gone(self) -> bytes:
        """Read on until the client closes its end."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""

    def reset(self) -> None:
        """Send a RST instead of a FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class RawServer:
    """What a script has met.

    Attributes:
        url: Where it listens.
        peers: Connections accepted, oldest first.
        most_open: How many were open at the same time, at most.
    """

    def __init__(self, script: Script, scheme: str = "http") -> None:
        self._script = script
        self._tasks: list[asyncio.Task[None]] = []
        self._open = 0
        self._scheme = scheme
        self.url = ""
        self.peers: list[Peer] = []
        self.most_open = 0

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(len(self.peers), reader, writer)
        self.peers.append(peer)
        self._tasks.append(asyncio.create_task(self._serve(peer)))

    def listens(self, server: asyncio.Server) -> None:
        name = server.sockets[0].getsockname()
        self.url = f"{self._scheme}://127.0.0.1:{name[1]}" if isinstance(name, tuple) else name

    async def aclose(self) -> None:
        """End every script; what an assertion in one said is raised."""
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, AssertionError):
                raise outcome

    async def _serve(self, peer: Peer) -> None:
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        try:
            await self._script(peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open -= 1
            peer.writer.close()


@asynccontextmanager
async def raw_server(
    script: Script, *, tls: ssl.SSLContext | None = None, uds: str | None = None
) -> AsyncIterator[RawServer]:
    """Serve `script` on loopback, or on a Unix socket at `uds`."""
    raw = RawServer(script, "https" if tls else "http")
    if uds is None:
        server = await asyncio.start_server(raw.accept, "127.0.0.1", 0, ssl=tls, limit=2**22)
    else:
        server = await asyncio.start_unix_server(raw.accept, uds, ssl=tls)
    raw.listens(server)
    try:
        yield raw
    finally:
        server.close()
        await raw.aclose()


def answering(*answers: bytes) -> Script:
    """Answer the requests of each connection with `answers`, the last one for ever."""

    async def script(peer: Peer) -> None:
        for answer in answers[:-1]:
            await peer.request()
            await peer.send(answer)
        while True:
            await peer.request()
            await peer.send(answers[-1])

    return script


def once(answer: bytes) -> Script:
    """Answer one request, then close."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    return script


async def silent(peer: Peer) -> None:
    """Take whatever comes and say nothing."""
    await peer.gone()


async def turns(count: int = 20) -> None:
    """Let everything else run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that is bound to happen soon."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")
