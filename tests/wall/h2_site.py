"""An HTTP/2 server that misbehaves on every path but /good."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from hyperframe.frame import Frame

from tests.local_tls import server_tls
from tests.raw_server import Peer, RawServer, raw_server
from tests.wall.h2_peer import H2Peer, Stream, data

Play = Callable[[H2Peer, Stream], Awaitable[bool]]
"""Answers a request whose head has been read; says whether the connection is to serve on."""


@dataclass
class H2Site:
    server: RawServer
    asked: list[str] = field(default_factory=list)
    peers: list[H2Peer] = field(default_factory=list)


@asynccontextmanager
async def h2_site(*plays: Play, settings: dict[int, int] | None = None) -> AsyncIterator[H2Site]:
    """Serve HTTP/2; the first of `plays` is for the first request, the last for all that follow."""

    async def script(below: Peer) -> None:
        peer = H2Peer(below, settings or {}, meanwhile=meanwhile)
        site.peers.append(peer)
        await peer.start()
        serving = True
        while serving:
            stream = await peer.request()
            site.asked.append(stream.path)
            if stream.path == "/good":
                peer.answer_now(stream.id)
            else:
                turn = min(len(site.asked) - site.asked.count("/good"), len(plays))
                serving = await plays[turn - 1](peer, stream)

    def meanwhile(work: Coroutine[Any, Any, None]) -> None:
        site.server._tasks.append(asyncio.create_task(work))

    async with raw_server(script, tls=server_tls("h2", "http/1.1")) as server:
        site = H2Site(server)
        yield site


Made = Callable[[H2Peer, int], Frame | bytes]
"""Makes what a script sends, for the connection and the stream at hand."""


def sends(*made: Made, serves_on: bool = True, each: bool = False) -> Play:
    """Send frames, all in one piece or each by itself, and serve on or hang up."""

    async def play(peer: H2Peer, stream: Stream) -> bool:
        out = [make(peer, stream.id) for make in made]
        for batch in [[one] for one in out] if each else [out]:
            await peer.send(*batch)
            await asyncio.sleep(0.005 if each else 0)
        return serves_on

    return play


def resets(*made: Made) -> Play:
    """Send frames, then reset the connection."""

    async def play(peer: H2Peer, stream: Stream) -> bool:
        await sends(*made)(peer, stream)
        await asyncio.sleep(0.01)  # or the kernel takes back what the client has not read
        peer.peer.reset()
        return False

    return play


def floods(*made: Made, with_what: Made, every: float = 0.001) -> Play:
    """Send frames, and then one kind of frame for ever, whatever else is asked for."""

    async def flood(peer: H2Peer, stream: Stream) -> None:
        with contextlib.suppress(ConnectionError):
            while not peer.peer.writer.is_closing():
                await peer.send(with_what(peer, stream.id))
                await asyncio.sleep(every)

    async def play(peer: H2Peer, stream: Stream) -> bool:
        await sends(*made)(peer, stream)
        peer.meanwhile(flood(peer, stream))
        return True

    return play


hangs = sends()
"""Says nothing to this request."""


def fixed(frame: Frame) -> Made:
    return lambda _peer, _stream: frame


def head(status: int = 200, *fields: tuple[str, str], end: bool = False) -> Made:
    return lambda peer, stream: peer.headers(stream, (":status", str(status)), *fields, end=end)


def body(content: bytes = b"", *, end: bool = False) -> Made:
    return lambda _, stream: data(stream, content, end=end)
