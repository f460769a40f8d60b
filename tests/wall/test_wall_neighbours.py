"""HTTP/2: what goes wrong on one stream stays there; what goes wrong below ends all, typed."""

import asyncio
from typing import Any

import pytest

from shared.infrastructure.http import (
    RemoteProtocolViolationError,
    TimeoutConfig,
    UpstreamError,
)
from tests.wall import h2_peer
from tests.wall.flavours import FLAVOURS, NAMES, Flavour, busy, opened
from tests.wall.h2_peer import H2Peer, Stream, rst, window
from tests.wall.h2_site import Made, Play, body, fixed, h2_site, hangs, head
from tests.wall.leaks import gone_soon

ALIKE = pytest.mark.parametrize("flavour", FLAVOURS, ids=NAMES)
FOUR = ("content-length", "4")
ONE_TRY: Any = {"retry_config": None, "timeout_config": TimeoutConfig(total=5.0)}

OF_THE_STREAM: dict[str, list[Made]] = {
    "stream reset": [lambda _, stream: rst(stream, h2_peer.INTERNAL_ERROR)],
    "body longer than its length": [head(200, FOUR), body(b"12345", end=True)],
    "body shorter than its length": [head(200, FOUR), body(b"123", end=True)],
    "no status": [lambda peer, stream: peer.headers(stream, ("x", "y"), end=True)],
    "status that is no number": [
        lambda peer, stream: peer.headers(stream, (":status", "ok"), end=True)
    ],
    "name in capitals": [head(200, ("X-Loud", "y"), end=True)],
    "field of HTTP/1.1": [head(200, ("transfer-encoding", "chunked"), end=True)],
    "line end in a field": [head(200, ("x", "a\r\nb"), end=True)],
    "field of a request": [head(200, (":path", "/"), end=True)],
    "window opened by nothing": [lambda _, stream: window(stream, 0)],
}
OF_THE_CONNECTION: dict[str, list[Made]] = {
    "ping of seven bytes": [lambda _peer, _stream: b"\0\0\7\6\0\0\0\0\0" + b"1234567"],
    "fields that cannot be unpacked": [lambda _peer, _stream: b"\0\0\1\1\4\0\0\0\1\xff"],
    "window of the connection opened by nothing": [fixed(window(0, 0))],
    "push": [lambda _peer, _stream: b"\0\0\5\5\4\0\0\0\1\0\0\0\2\x88"],
    "settings on a stream": [lambda _peer, _stream: b"\0\0\0\4\0\0\0\0\1"],
    "answer on a stream of the server": [lambda peer, _: peer.headers(2, (":status", "200"))],
}


def once_two_are_there(first: list[int], made: list[Made]) -> list[Play]:
    """Wait for a second request, then do something to the first and answer the second."""

    async def wait(_peer: H2Peer, stream: Stream) -> bool:
        first.append(stream.id)
        return True

    async def play(peer: H2Peer, stream: Stream) -> bool:
        await peer.send(*(make(peer, first[0]) for make in made))
        await asyncio.sleep(0)
        await peer.send(head()(peer, stream.id), body(b"fine", end=True)(peer, stream.id))
        return True

    return [wait, play, hangs]


async def two_at_once(client: Any) -> tuple[Any, Any]:
    assert (await client.get("/good")).text == "ok"  # so that the two share its connection
    first = asyncio.ensure_future(client.get("/bad"))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(client.get("/neighbour"))
    return await asyncio.gather(first, second, return_exceptions=True)


@pytest.mark.parametrize("made", OF_THE_STREAM.values(), ids=OF_THE_STREAM)
@ALIKE
async def test_a_fault_of_one_stream_spares_its_neighbours(
    flavour: Flavour, made: list[Made]
) -> None:
    async with (
        h2_site(*once_two_are_there([], made)) as site,
        opened(flavour, site.server.url, **ONE_TRY) as client,
    ):
        bad, neighbour = await two_at_once(client)
        assert isinstance(bad, RemoteProtocolViolationError), bad
        assert isinstance(bad, flavour.library.RemoteProtocolError)
        assert neighbour.text == "fine"
        await gone_soon(lambda: busy(client))
        assert (await client.get("/good")).text == "ok"
        assert len(site.peers) == 1


@pytest.mark.parametrize("made", OF_THE_CONNECTION.values(), ids=OF_THE_CONNECTION)
@ALIKE
async def test_a_fault_of_the_connection_is_told_to_all_on_it(
    flavour: Flavour, made: list[Made]
) -> None:
    async with (
        h2_site(*once_two_are_there([], made)) as site,
        opened(flavour, site.server.url, **ONE_TRY) as client,
    ):
        for error in await two_at_once(client):
            assert isinstance(error, UpstreamError), error
            assert isinstance(error, flavour.library.TransportError)
            assert not error.unsent
        await gone_soon(lambda: busy(client))
        assert (await client.get("/good")).text == "ok"
        assert len(site.peers) == 2
        assert site.peers[0].goaway, "the service is not told what it did wrong"


async def test_the_two_are_on_one_connection() -> None:
    for flavour in FLAVOURS:
        plays = once_two_are_there([], [head(), body(b"fine", end=True)])
        async with (
            h2_site(*plays) as site,
            opened(flavour, site.server.url, **ONE_TRY) as client,
        ):
            answers = await two_at_once(client)
            assert [answer.text for answer in answers] == ["fine", "fine"]
            assert len(site.peers) == 1
