"""An HTTP/1.1 server that misbehaves on every path but /good."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Literal

from tests.raw_server import OK, Peer, RawServer, raw_server

Play = Callable[[Peer], Awaitable[bool]]
"""Answers a request whose head has been read; says whether the connection is to serve on."""

Ending = Literal["close", "reset", "hang", "serve on"]

HEAD = b"HTTP/1.1 200 OK\r\n"


@dataclass
class H1Site:
    server: RawServer
    asked: list[str] = field(default_factory=list)


@asynccontextmanager
async def h1_site(play: Play, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[H1Site]:
    async def script(peer: Peer) -> None:
        serving = True
        while serving:
            head = await peer.request()
            path = head.split(b" ", 2)[1].decode()
            site.asked.append(path)
            if path == "/good":
                await peer.send(OK)
            else:
                serving = await play(peer)

    async with raw_server(script, tls=tls) as server:
        site = H1Site(server)
        yield site


def says(*pieces: bytes, then: Ending = "close") -> Play:
    """Send `pieces`, each by itself."""

    async def play(peer: Peer) -> bool:
        await peer.send(*pieces)
        return await ends(peer, then)

    return play


def drips(pieces: Iterable[bytes], every: float = 0.0) -> Play:
    """Send pieces as long as anybody listens."""

    async def play(peer: Peer) -> bool:
        for piece in pieces:
            await peer.send(piece)
            await asyncio.sleep(every)
        return await ends(peer, "hang")

    return play


def endless(head: bytes, piece: bytes, every: float = 0.0) -> Play:
    """Send a head and then the same piece again and again."""

    async def play(peer: Peer) -> bool:
        await peer.send(head)
        return await drips(repeat(piece), every)(peer)

    return play


async def ends(peer: Peer, then: Ending) -> bool:
    if then == "reset":
        await asyncio.sleep(0.005)  # or the kernel takes back what the client has not read
        peer.reset()
    elif then == "hang":
        await peer.gone()
    return then == "serve on"


def with_length(body: bytes, *fields: bytes) -> bytes:
    """Return a good answer."""
    lines = b"".join(field + b"\r\n" for field in fields)
    return HEAD + b"Content-Length: %d\r\n%b\r\n%b" % (len(body), lines, body)


def bytes_of(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]
