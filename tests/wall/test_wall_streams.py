"""HTTP/2: what one stream does on a connection must not harm those that share it."""

import asyncio
from functools import partial
from typing import Any

import pytest
from hyperframe import frame as frames

from shared.infrastructure.http import TimeoutConfig, WriteTimeoutError
from shared.infrastructure.resilience import DeadlineExceededError
from tests.raw_server import until
from tests.wall import h2_peer
from tests.wall.flavours import FLAVOURS, NAMES, Flavour, busy, opened
from tests.wall.h2_peer import H2Peer, Stream, rst
from tests.wall.h2_site import body, fixed, h2_site, hangs, head, sends
from tests.wall.leaks import gone_soon
from tests.wall.row import Row, meet, on_every_flavour

ALIKE = pytest.mark.parametrize("flavour", FLAVOURS, ids=NAMES)
FINE = (200, b"fine")
One: Any = partial(Row, seen=1)

fine = body(b"fine", end=True)


def split_head(peer: H2Peer, stream: int) -> bytes:
    whole = peer.headers(stream, (":status", "200"), ("x", "y" * 99))
    assert isinstance(whole, frames.HeadersFrame)
    first = frames.HeadersFrame(stream, whole.data[:20])
    rest = frames.ContinuationFrame(stream, whole.data[20:], flags=["END_HEADERS"])
    return first.serialize() + rest.serialize()


def trailers(peer: H2Peer, stream: int) -> frames.Frame:
    return peer.headers(stream, ("x-sum", "1"), end=True)


UNUSUAL = [
    One("103 before the answer", sends(head(103), head(), fine), FINE),
    One("trailers", sends(head(), body(b"fine"), trailers), FINE),
    One(
        "padding",
        sends(
            head(),
            lambda _, stream: frames.DataFrame(
                stream, b"fine", pad_length=9, flags=["PADDED", "END_STREAM"]
            ),
        ),
        FINE,
    ),
    One("head in two pieces", sends(split_head, fine), FINE),
    One("empty pieces", sends(head(), *[body()] * 20, fine), FINE),
    One("settings on the way", sends(head(), fixed(frames.SettingsFrame(0)), fine), FINE),
    One(
        "pings on the way",
        sends(*[fixed(frames.PingFrame(0, b"12345678"))] * 9, head(), fine),
        FINE,
    ),
    One("frames of the future", sends(fixed(frames.ExtensionFrame(0xBE, 0)), head(), fine), FINE),
    One("head alone", sends(head(204, end=True)), (204, b"")),
    One(
        "answer to HEAD",
        sends(head(200, ("content-length", "4"), end=True)),
        (200, b""),
        method="HEAD",
    ),
    One("end not announced", sends(head(), fine, serves_on=False), FINE),
    One(
        "goodbye after the answer",
        sends(head(), fine, lambda _, stream: h2_peer.goaway(stream)),
        FINE,
    ),
]


async def refuse_early(peer: H2Peer, stream: Stream) -> bool:
    """Refuse an upload before it is whole, as RFC 9113, section 8.1, says."""
    await sends(head(413), fine)(peer, stream)
    await peer.send(rst(stream.id, h2_peer.NO_ERROR))
    return True


BIG: Any = {"method": "PUT", "body": lambda: bytes(3_000_000)}
NO_WINDOW = {h2_peer.INITIAL_WINDOW_SIZE: 0}
STALLED = {"read": 0.1, "write": 0.1}
UPLOADS = [
    One("upload refused before it is whole", refuse_early, (413, b"fine"), **BIG),
]
STALLS: list[Row[Any]] = [
    Row(
        "upload that gets no window",
        hangs,
        WriteTimeoutError,
        limits=STALLED,
        **BIG,
    ),
    One(
        "upload that gets no window in time",
        hangs,
        DeadlineExceededError,
        limits={"total": 0.3},
        **BIG,
    ),
]


@on_every_flavour(UNUSUAL + UPLOADS)
async def test_an_unusual_answer_is_an_answer(row: Row[Any], flavour: Flavour) -> None:
    await meet(row, flavour, h2_site(row.play))


@on_every_flavour(STALLS)
async def test_an_upload_that_stalls_ends_in_time(row: Row[Any], flavour: Flavour) -> None:
    await meet(row, flavour, h2_site(row.play, settings=NO_WINDOW))


async def megabyte(peer: H2Peer, stream: Stream) -> bool:
    """Send a megabyte as fast as the client lets us, and see to the next request after that."""
    await sends(head())(peer, stream)
    await peer.body(stream, bytes(10**6))
    return True


@ALIKE
async def test_bodies_left_unread_do_not_use_up_the_window_of_their_connection(
    flavour: Flavour,
) -> None:
    limits = TimeoutConfig(read=1.0)
    async with (
        h2_site(megabyte) as site,
        opened(flavour, site.server.url, timeout_config=limits, retry_config=None) as client,
    ):
        for _ in range(20):
            async with client.stream("GET", "/bad") as response:
                assert response.status_code == 200
        assert len((await client.get("/bad")).content) == 10**6
        assert len(site.peers) == 1


@ALIKE
async def test_a_service_is_told_of_a_stream_that_is_left(flavour: Flavour) -> None:
    async with (
        h2_site(sends(head(), body(b"half"))) as site,
        opened(flavour, site.server.url) as client,
    ):
        async with client.stream("GET", "/bad") as response:
            assert response.status_code == 200
        assert (await client.get("/good")).text == "ok"
        peer = site.peers[0]
        await gone_soon(lambda: peer.is_open and peer.streams[1].reset is None)


@ALIKE
async def test_a_service_is_told_of_a_request_that_is_cancelled(flavour: Flavour) -> None:
    async with h2_site(hangs) as site, opened(flavour, site.server.url) as client:
        assert (await client.get("/good")).text == "ok"
        call = asyncio.ensure_future(client.get("/bad"))
        await until(lambda: "/bad" in site.asked)
        call.cancel()
        await gone_soon(lambda: site.peers[0].streams[3].reset is None)
        assert (await client.get("/good")).text == "ok"
        assert len(site.peers) == 1


@ALIKE
async def test_a_limit_lowered_under_streams_does_not_stop_them(flavour: Flavour) -> None:
    waiting: list[int] = []

    async def lower(peer: H2Peer, stream: Stream) -> bool:
        waiting.append(stream.id)
        if len(waiting) == 5:
            await peer.send(frames.SettingsFrame(0, settings={h2_peer.MAX_CONCURRENT_STREAMS: 1}))
            for number in waiting:
                peer.answer_now(number)
        return True

    limits = TimeoutConfig(total=2.0)
    settings = {h2_peer.MAX_CONCURRENT_STREAMS: 5}
    async with (
        h2_site(lower, settings=settings) as site,
        opened(flavour, site.server.url, timeout_config=limits, retry_config=None) as client,
    ):
        assert (await client.get("/good")).text == "ok"
        answers = await asyncio.gather(*(client.get("/bad") for _ in range(5)))
        assert {answer.text for answer in answers} == {"ok"}
        assert (await client.get("/good")).text == "ok"
        await gone_soon(lambda: busy(client))


@ALIKE
async def test_no_stream_allowed_is_an_end_in_time(flavour: Flavour) -> None:
    limits = TimeoutConfig(total=0.3, pool=5.0)
    settings = {h2_peer.MAX_CONCURRENT_STREAMS: 0}
    async with (
        h2_site(hangs, settings=settings) as site,
        opened(flavour, site.server.url, timeout_config=limits, retry_config=None) as client,
    ):
        for _ in range(3):
            with pytest.raises(DeadlineExceededError):
                await client.get("/bad")
        await gone_soon(lambda: busy(client))


@ALIKE
async def test_a_connection_closed_while_idle_does_not_cost_a_post(flavour: Flavour) -> None:
    async with (
        h2_site(sends(head(), fine, serves_on=False)) as site,
        opened(flavour, site.server.url, idempotency_keys=False) as client,
    ):
        for _ in range(3):
            assert (await client.post("/bad", content=b"order")).text == "fine"
            await asyncio.sleep(0.02)
        assert len(site.asked) == 3
