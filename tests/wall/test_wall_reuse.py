"""HTTP/1.1: what one exchange leaves on a connection must not become part of the next."""

import asyncio
import socket
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from shared.infrastructure.http import (
    StaleConnectionError,
    WriteFailedError,
    WriteTimeoutError,
)
from tests.local_tls import server_tls
from tests.raw_server import Peer, turns
from tests.wall.answers import Said, Version
from tests.wall.flavours import FLAVOURS, NAMES, Flavour, opened
from tests.wall.h1_site import HEAD, Play, ends, h1_site, says, with_length
from tests.wall.row import Row, meet, on_every_flavour

ALIKE = pytest.mark.parametrize("flavour", FLAVOURS, ids=NAMES)
FINE = (200, b"fine")
GOOD = with_length(b"fine")
EVIL = with_length(b"evil")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </x.css>\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No\r\n\r\n"
CLOSING = with_length(b"fine", b"Connection: close")
OLD = with_length(b"fine", b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
EVENTS = HEAD + b"Content-Type: text/event-stream\r\n\r\ndata: a\n\n"
One: Any = partial(Row, seen=1)


def answer(status: bytes, content: bytes) -> bytes:
    return with_length(content).replace(b"200", status)


async def one_shot() -> AsyncIterator[bytes]:
    yield b"order"


def stale(then: Any = "close") -> Play:
    """Break a connection that has been used before, and answer on any other."""

    async def play(peer: Peer) -> bool:
        if peer.number == 0:
            return await ends(peer, then)
        return await says(GOOD, then="serve on")(peer)

    return play


STALE = [
    Row("kept connection closed", stale(), FINE, after=1),
    Row("kept connection reset", stale("reset"), FINE, after=1),
    Row(
        "kept connection closed, no retries", stale(), FINE, after=1, options={"retry_config": None}
    ),
    Row(
        "kept connection closed on a POST with a key",
        stale(),
        FINE,
        method="POST",
        body=lambda: b"order",
        after=1,
    ),
    One(
        "kept connection closed on a POST without a key",
        stale(),
        StaleConnectionError,
        method="POST",
        body=lambda: b"order",
        options={"idempotency_keys": False},
        after=1,
    ),
    One(
        "kept connection closed on a body that cannot be sent again",
        stale(),
        StaleConnectionError,
        method="PUT",
        body=one_shot,
        after=1,
    ),
]


Again: Any = partial(One, connections=1)
Anew: Any = partial(One, connections=2)

LEFT_OVERS = [
    Anew("second answer nobody asked for", says(GOOD + EVIL, then="serve on"), FINE),
    Anew("second answer, a moment later", says(GOOD, EVIL, then="serve on"), FINE),
    Anew("half an answer nobody asked for", says(GOOD + EVIL[:20], then="serve on"), FINE),
    Anew("half an answer, a moment later", says(GOOD, EVIL[:20], then="serve on"), FINE),
    Anew("body longer than its length", says(GOOD + b"!" * 9, then="serve on"), FINE),
    One("empty lines after the answer", says(GOOD + b"\r\n\r\n", then="serve on"), FINE),
    Anew("204 with a body", says(NO_CONTENT + EVIL, then="serve on"), (204, b"")),
    Anew("304 with a body", says(answer(b"304", b"evil"), then="serve on"), (304, b"")),
    Anew("HEAD with a body", says(EVIL, then="serve on"), (200, b""), method="HEAD"),
    Again("HEAD without one", says(GOOD[:-4], then="serve on"), (200, b""), method="HEAD"),
    Anew("close announced, not done", says(CLOSING, then="hang"), FINE),
    Anew("close announced and done", says(CLOSING), FINE),
    Anew("close not announced", says(GOOD), FINE),
    Again("100 before the answer", says(CONTINUE, GOOD, then="serve on"), FINE),
    Again("103 before the answer", says(HINTS + HINTS, GOOD, then="serve on"), FINE),
    Anew("HTTP/1.0", says(b"HTTP/1.0 200 OK\r\n\r\nfine"), FINE),
    Anew("HTTP/1.0 that keeps alive", says(OLD, then="hang"), FINE),
    Anew("no length at all", says(HEAD + b"\r\nfine"), FINE),
    Anew("event stream to its end", says(EVENTS), (200, b"data: a\n\n"), streamed=True),
    Again("401", says(answer(b"401", b"no"), then="serve on"), (401, b"no")),
    Again("407", says(answer(b"407", b"no"), then="serve on"), (407, b"no")),
]

BIG = bytes(16_000_000)


async def refuse_at_once(peer: Peer) -> bool:
    """Refuse an upload, and take no more of it."""
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await peer.send(answer(b"413", b"fine"))
    await asyncio.sleep(0.1)
    return False


async def refuse_and_reset(peer: Peer) -> bool:
    """Refuse an upload, and reset the connection under what is left of it."""
    await refuse_at_once(peer)
    peer.reset()
    return False


async def reset_at_once(peer: Peer) -> bool:
    """Reset the connection under an upload."""
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(0.05)
    peer.reset()
    return False


async def take_nothing(peer: Peer) -> bool:
    """Stop taking bytes of an upload."""
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(0.5)
    return False


PUT: Any = {"method": "PUT", "body": lambda: BIG}
TAKEN = {"write": 0.1}
UPLOADS = [
    One("upload refused before it is whole", refuse_at_once, (413, b"fine"), **PUT),
    One("upload refused, then reset", refuse_and_reset, (413, b"fine"), **PUT),
    Row("upload reset", reset_at_once, WriteFailedError, cause=OSError, **PUT),
    Row("upload that nobody takes", take_nothing, WriteTimeoutError, limits=TAKEN, **PUT),
]


@pytest.mark.parametrize("offer", ["HTTP/1.1", "HTTP/2"])
@on_every_flavour(STALE + LEFT_OVERS + UPLOADS)
async def test_the_next_request_is_none_the_wiser(
    row: Row[Play], flavour: Flavour, offer: Version
) -> None:
    tls = server_tls("http/1.1") if offer == "HTTP/2" else None
    await meet(row, flavour, h1_site(row.play, tls=tls))


@pytest.mark.parametrize(
    "sent", [EVIL, EVIL[:20], b"\0"], ids=["an answer", "half of one", "noise"]
)
@ALIKE
async def test_what_comes_on_an_idle_connection_ends_it_even_if_nobody_has_seen_it_yet(
    flavour: Flavour, sent: bytes
) -> None:
    async with h1_site(says()) as site, opened(flavour, site.server.url) as client:
        assert (await client.get("/good")).text == "ok"
        site.server.peers[0].writer.write(sent)  # in the client's inbox before the loop turns
        assert (await client.get("/good")).text == "ok"
        site.server.peers[1].writer.write(sent)
        await turns()  # and here the loop has turned
        assert (await client.get("/good")).text == "ok"
        assert len(site.server.peers) == 3


@ALIKE
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
async def test_the_end_of_an_idle_connection_is_seen_in_time_for_a_post_without_a_key(
    flavour: Flavour, version: Version
) -> None:
    async with (
        Said(b"fine").site(version) as site,
        opened(flavour, site.server.url, idempotency_keys=False) as client,
    ):
        for turn in range(3):
            assert (await client.post("/bad", content=b"order")).content == b"fine"
            peer = site.server.peers[turn]
            peer.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
        assert site.asked == ["/bad"] * 3
