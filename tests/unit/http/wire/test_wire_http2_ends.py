"""How a connection of HTTP/2 ends, and what that means to the exchanges on it."""

import asyncio

import pytest
from hyperframe import frame as frames

from shared.infrastructure.http import (
    ReadFailedError,
    RemoteProtocolViolationError,
    UpstreamError,
)
from shared.infrastructure.http.errors import UnprocessedError
from shared.infrastructure.http.wire.errors import StaleConnectionError
from tests.raw_server import turns, until
from tests.unit.http.wire.http2_said import data
from tests.unit.http.wire.http2_wired import (
    Asked,
    Play,
    Service,
    goaway,
    hang_up,
    never,
    reset_connection,
    wired2,
)


async def half(service: Service, stream: Asked) -> None:
    """Begin an answer."""
    await service.send(service.head(stream), data(stream.id, b"half"))


BREAKS = [
    (hang_up, RemoteProtocolViolationError, "without answering"),
    (reset_connection, ReadFailedError, "before it answered"),
]


@pytest.mark.parametrize(("play", "kind", "words"), BREAKS)
async def test_a_new_connection_that_breaks_fails_everything_on_it(
    play: Play, kind: type[UpstreamError], words: str
) -> None:
    async with wired2(never, paths={"/bad": play}) as http:
        others = [asyncio.create_task(http.get("/x")) for _ in range(3)]
        await until(lambda: len(http.asked()) == 3)
        for task in [*others, asyncio.create_task(http.get("/bad"))]:
            with pytest.raises(kind, match=words) as caught:
                await task
            assert type(caught.value).__mro__[1] is kind
        await turns()
        assert http.stats("open") == [0]


@pytest.mark.parametrize("play", [hang_up, reset_connection])
async def test_a_kept_connection_that_breaks_before_the_answer_is_stale_over_http2(
    play: Play,
) -> None:
    async with wired2(paths={"/bad": play}) as http:
        await http.get("/x")
        with pytest.raises(StaleConnectionError):
            await http.get("/bad")
        assert (await http.get("/x")).text == "/x"
        assert len(http.services) == 2


@pytest.mark.parametrize(
    ("end", "kind"),
    [(hang_up, RemoteProtocolViolationError), (reset_connection, ReadFailedError)],
)
async def test_a_kept_connection_that_breaks_within_the_answer_is_not_stale_over_http2(
    end: Play, kind: type[UpstreamError]
) -> None:
    async def play(service: Service, stream: Asked) -> None:
        await half(service, stream)
        await asyncio.sleep(0.01)
        await end(service, stream)

    async with wired2(paths={"/bad": play}) as http:
        await http.get("/x")
        with pytest.raises(kind, match="within its answer") as caught:
            await http.get("/bad")
        assert not isinstance(caught.value, StaleConnectionError)


async def test_nonsense_on_the_connection_is_the_fault_of_the_service_and_it_is_told() -> None:
    async def play(service: Service, _stream: Asked) -> None:
        await service.send(frames.WindowUpdateFrame(0, 2**31 - 1))

    async with wired2(never, paths={"/bad": play}) as http:
        tasks = [asyncio.create_task(http.get("/x")), asyncio.create_task(http.get("/bad"))]
        for task in tasks:
            with pytest.raises(RemoteProtocolViolationError, match="broke HTTP/2: a window") as got:
                await task
            assert (got.value.phase, got.value.unsent) == ("read", False)
        await until(lambda: http.services[0].goodbye == 3)


async def test_pings_are_answered_while_nothing_is_asked() -> None:
    async with wired2() as http:
        await http.get("/x")
        service = http.services[0]
        heard: list[frames.Frame] = []
        real = service._hear

        async def hear(frame: frames.Frame) -> None:
            heard.append(frame)
            await real(frame)

        service._hear = hear  # type: ignore[method-assign]
        await service.send(frames.PingFrame(0, b"12345678"))
        await until(lambda: any(isinstance(frame, frames.PingFrame) for frame in heard))
        assert http.stats("open", "idle") == [1, 1]


async def goodbye(service: Service, stream: Asked) -> None:
    """Take no more requests, and answer what there is."""
    await service.send(goaway(stream.id))
    await asyncio.sleep(0.01)
    await service.answer(stream)
    service.peer.writer.close()


async def test_a_goodbye_lets_what_is_under_way_be_answered() -> None:
    async with wired2(paths={"/last": goodbye}) as http:
        await http.get("/x")
        last = asyncio.create_task(http.get("/last"))
        await http.seen("/last")
        await asyncio.sleep(0.005)
        assert (await http.get("/next")).text == "/next"
        assert (await last).text == "/last"
        await until(lambda: http.stats("open", "idle") == [1, 1])
        assert [list(service.asked) for service in http.services] == [[1, 3], [1]]


async def test_a_goodbye_below_a_request_says_that_it_was_not_touched() -> None:
    async def play(service: Service, stream: Asked) -> None:
        await service.send(goaway(stream.id - 2))

    async with wired2(paths={"/bad": play}) as http:
        await http.get("/x")
        with pytest.raises(UnprocessedError, match="with NO_ERROR") as caught:
            await http.post("/bad", content=b"once")
        assert caught.value.unsent
        await turns()
        assert http.stats("open") == [0]
        assert (await http.get("/y")).text == "/y"


async def test_a_goodbye_to_an_idle_connection_closes_it() -> None:
    async with wired2() as http:
        await http.get("/x")
        await http.services[0].send(goaway(1))
        await until(lambda: http.stats("open", "idle") == [0, 0])


async def test_an_end_after_an_angry_goodbye_tells_its_reason() -> None:
    async def play(service: Service, stream: Asked) -> None:
        await service.send(goaway(stream.id, 11))
        service.peer.writer.close()

    async with wired2(play) as http:
        with pytest.raises(RemoteProtocolViolationError, match="saying ENHANCE_YOUR_CALM, without"):
            await http.get("/x")


async def test_closing_says_goodbye_and_ends_what_is_under_way() -> None:
    async with wired2(never) as http:
        tasks = [asyncio.create_task(http.get("/x")) for _ in range(3)]
        await until(lambda: len(http.asked()) == 3)
        await http.wire.aclose()
        for task in tasks:
            with pytest.raises(ReadFailedError, match="client was closed"):
                await task
        await until(lambda: http.services[0].goodbye == 0)
