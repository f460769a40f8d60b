"""Servers for many requests at once: each answer comes by itself, after a moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.raw_server import OK, Peer
from tests.wall.answers import Version
from tests.wall.h1_site import h1_site
from tests.wall.h2_peer import MAX_CONCURRENT_STREAMS, H2Peer, Stream
from tests.wall.h2_site import body, h2_site, head

SLOTS = 10


def crowd_site(
    version: Version, delay: Callable[[], float], *, slots: int = SLOTS
) -> AbstractAsyncContextManager[Any]:
    """Return a server that answers after `delay()` seconds, each request by itself.

    Args:
        version: Version of HTTP; over HTTP/2, `slots` are streams of a connection.
        delay: Returns the seconds.
        slots: Requests answered at the same time, over HTTP/2.
    """

    async def answer(peer: Peer) -> bool:
        for piece in (OK[:20], OK[20:-1], OK[-1:]):
            await asyncio.sleep(delay() / 3)
            await peer.send(piece)
        return True

    async def answer_stream(peer: H2Peer, stream: Stream) -> bool:
        peer.meanwhile(in_pieces(peer, stream))
        return True

    async def in_pieces(peer: H2Peer, stream: Stream) -> None:
        for make in (head(), body(b"o"), body(b"k", end=True)):
            await asyncio.sleep(delay() / 3)
            if not peer.peer.writer.is_closing():
                await peer.send(make(peer, stream.id))

    if version == "HTTP/1.1":
        return h1_site(answer)
    return h2_site(answer_stream, settings={MAX_CONCURRENT_STREAMS: slots})


def random_delays(seed: int, most: float) -> Callable[[], float]:
    rng = random.Random(seed)
    return lambda: rng.random() * most
