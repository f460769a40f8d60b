"""Which connection carries which request where some services speak HTTP/2."""

import asyncio
import contextlib
import ssl
from typing import Any

import httpx
import pytest
from hyperframe import frame as frames

from shared.infrastructure.http import (
    ConnectFailedError,
    ConnectTimeoutError,
    PoolTimeoutError,
    ReadFailedError,
    TLSFailedError,
    WireTransport,
)
from shared.infrastructure.resilience import ConfigurationError
from shared.infrastructure.testing import FakeClock
from tests.local_tls import client_tls, server_tls
from tests.raw_server import OK, answering, raw_server, silent, turns, until
from tests.unit.http.wire.http2_wired import (
    Asked,
    Service,
    Wired2,
    goaway,
    never,
    wired2,
)
from tests.unit.http.wire.wired import NOTHING, left_over

MAX_CONCURRENT_STREAMS = 3


class Gate:
    """Answers nobody before it is opened, and counts those who wait."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.held = 0
        self.most = 0

    async def play(self, service: Service, stream: Asked) -> None:
        self.held += 1
        self.most = max(self.most, self.held)
        await self.event.wait()
        self.held -= 1
        await service.answer(stream)


def asks(http: Wired2, count: int) -> list[asyncio.Task[httpx.Response]]:
    return [asyncio.create_task(http.get(f"/{number}")) for number in range(count)]


async def test_no_more_streams_than_the_service_allows_and_the_rest_in_order() -> None:
    gate = Gate()
    async with wired2(gate.play, settings={MAX_CONCURRENT_STREAMS: 4}) as http:
        tasks = asks(http, 30)
        await until(lambda: gate.held == 4)
        await turns()
        assert http.stats("open", "idle", "waiting") == [1, 0, 26]
        gate.event.set()
        answers = await asyncio.gather(*tasks)
        assert [answer.text for answer in answers] == [f"/{number}" for number in range(30)]
        assert [one.path for one in http.asked()] == [f"/{number}" for number in range(30)]
        assert gate.most == 4
        assert http.stats("open", "idle", "waiting") == [1, 1, 0]


async def test_the_service_may_allow_more_and_less_while_streams_are_open() -> None:
    gate = Gate()
    async with wired2(gate.play, settings={MAX_CONCURRENT_STREAMS: 2}) as http:
        tasks = asks(http, 6)
        await until(lambda: gate.held == 2)
        await http.services[0].send(frames.SettingsFrame(0, settings={MAX_CONCURRENT_STREAMS: 5}))
        await until(lambda: gate.held == 5)
        await http.services[0].send(frames.SettingsFrame(0, settings={MAX_CONCURRENT_STREAMS: 1}))
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        await asyncio.sleep(0.01)
        assert http.stats("waiting") == [1]
        gate.event.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [
            asyncio.CancelledError,
            *[httpx.Response] * 5,
        ]


async def test_a_place_that_does_not_come_free_is_a_pool_timeout() -> None:
    clock, gate = FakeClock(), Gate()
    options: Any = {"clock": clock, "timeout": httpx.Timeout(60, pool=2)}
    async with wired2(gate.play, settings={MAX_CONCURRENT_STREAMS: 1}, **options) as http:
        first, second = asks(http, 2)
        await until(lambda: gate.held == 1 and http.stats("waiting") == [1])
        await asyncio.sleep(0.01)
        await clock.advance(1.9)
        assert http.stats("waiting") == [1]
        await clock.advance(0.2)
        with pytest.raises(PoolTimeoutError, match=r"all 1 streams .* stayed busy for 2 s") as got:
            await second
        assert (got.value.phase, got.value.unsent) == ("pool", True)
        gate.event.set()
        assert (await first).text == "/0"
        assert http.stats("open", "idle", "waiting") == [1, 1, 0]


async def test_a_waiter_for_a_place_that_is_cancelled_lets_the_others_move_up() -> None:
    gate = Gate()
    async with wired2(gate.play, settings={MAX_CONCURRENT_STREAMS: 1}) as http:
        tasks = asks(http, 5)
        await until(lambda: gate.held == 1 and http.stats("waiting") == [4])
        tasks[1].cancel()
        tasks[3].cancel()
        gate.event.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [one.path for one in http.asked()] == ["/0", "/2", "/4"]


async def test_no_stream_at_all_is_a_pool_timeout_and_keeps_no_slot() -> None:
    async with wired2(settings={MAX_CONCURRENT_STREAMS: 0}, most=1) as http:
        limits = httpx.Timeout(5.0, pool=0.02)
        for _ in range(2):
            outcomes = await asyncio.gather(
                *(http.get("/x", timeout=limits) for _ in range(3)), return_exceptions=True
            )
            late = [one for one in outcomes if isinstance(one, PoolTimeoutError)]
            assert len(late) >= 2  # one may have gone out before the settings came in
            await until(lambda: http.stats("open", "idle", "waiting") == [1, 1, 0])


async def test_a_line_for_a_connection_that_says_goodbye_moves_to_the_next_one() -> None:
    async def bye(service: Service, stream: Asked) -> None:
        await asyncio.sleep(0.005)
        await service.send(goaway(stream.id))
        await asyncio.sleep(0.005)
        await service.answer(stream)

    limit = {MAX_CONCURRENT_STREAMS: 1}
    async with wired2(bye, Service.answer, settings=limit, most=2) as http:
        answers = await asyncio.gather(*asks(http, 10))
        assert [answer.text for answer in answers] == [f"/{number}" for number in range(10)]
        assert [len(service.asked) for service in http.services] == [1, 9]
        await until(lambda: http.stats("open", "idle") == [1, 1])


async def test_a_service_without_http2_is_spoken_to_in_http1_by_as_many_as_ask() -> None:
    async with raw_server(answering(OK), tls=server_tls("http/1.1")) as server:
        wire = WireTransport(tls=client_tls(), http2=True)
        async with httpx.AsyncClient(transport=wire, base_url=server.url) as http:
            for _ in range(2):
                answers = await asyncio.gather(*(http.get("/x") for _ in range(10)))
                assert {answer.http_version for answer in answers} == {"HTTP/1.1"}
            assert wire.stats()["open"] == wire.stats()["idle"] == 10
            assert (await http.post("/x", content=b"ab")).text == "ok"
        assert left_over(wire) == NOTHING


async def test_both_versions_share_a_pool_and_its_bound() -> None:
    async with (
        raw_server(answering(OK), tls=server_tls("http/1.1")) as old,
        raw_server(answering(OK)) as plain,
        wired2(most=2) as http,
    ):
        for _ in range(3):
            for url, version in (
                (old.url, "HTTP/1.1"),
                (plain.url, "HTTP/1.1"),
                ("/x", "HTTP/2"),
                ("/y", "HTTP/2"),
            ):
                assert (await http.get(url)).http_version == version
                assert http.stats("open")[0] <= 2
        assert http.stats("requests", "reused") == [12, 3]


async def test_http2_is_not_offered_unless_asked_for() -> None:
    async with (
        raw_server(answering(OK), tls=server_tls("h2", "http/1.1")) as server,
        httpx.AsyncClient(transport=WireTransport(tls=client_tls())) as http,
    ):
        assert (await http.get(server.url)).http_version == "HTTP/1.1"
        tls = server.peers[0].writer.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() == "http/1.1"


async def test_an_idle_http2_connection_expires_and_says_goodbye() -> None:
    clock = FakeClock()
    async with wired2(expiry=5.0, clock=clock) as http:
        await http.get("/x")
        await clock.advance(4.9)
        await http.get("/x")
        await clock.advance(4.9)
        assert http.stats("open", "idle", "reused") == [1, 1, 1]
        await clock.advance(0.2)
        assert http.stats("open", "idle") == [0, 0]
        await until(lambda: http.services[0].goodbye == 0)


async def test_none_of_http2_is_kept_if_none_may_be_idle() -> None:
    async with wired2(keep=0) as http:
        for _ in range(2):
            await http.get("/x")
            await turns()
            assert http.stats("open", "idle") == [0, 0]
        assert len(http.services) == 2


async def test_what_a_busy_loop_has_not_seen_yet_of_an_end_is_found_before_a_request() -> None:
    async with wired2() as http:
        await http.get("/x")
        service = http.services[0]
        service.peer.writer.get_extra_info("socket").shutdown(1)
        assert (await http.get("/y")).text == "/y"
        assert len(http.services) == 2


async def test_bytes_nobody_has_seen_yet_do_not_cost_a_connection() -> None:
    async with wired2() as http:
        await http.get("/x")
        service = http.services[0]
        service.peer.writer.write(frames.PingFrame(0, bytes(8)).serialize())
        assert (await http.get("/y")).text == "/y"
        assert len(http.services) == 1


async def test_an_idle_http2_connection_makes_room_when_the_pool_is_full() -> None:
    async with raw_server(answering(OK)) as other, wired2(most=1) as http:
        for _ in range(3):
            assert (await http.get("/x")).text == "/x"
            assert (await http.get(other.url)).text == "ok"
        assert http.stats("open", "requests", "reused") == [1, 6, 0]


class Stuck:
    """Holds up whoever connects."""

    def __init__(self, http: Wired2, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = asyncio.Event()
        self.error: OSError | None = None
        self.tried = 0
        connector = http.wire._pool._connector
        self._connect = connector._connect
        monkeypatch.setattr(connector, "_connect", self.connect)

    async def connect(self, *arguments: Any) -> Any:
        self.tried += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return await self._connect(*arguments)


async def test_those_who_wait_for_the_first_connection_go_on_if_its_opener_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with wired2() as http:
        stuck = Stuck(http, monkeypatch)
        tasks = asks(http, 5)
        await until(lambda: stuck.tried == 1)
        await turns()
        assert http.stats("connecting", "waiting") == [1, 4]
        tasks[0].cancel()
        tasks[2].cancel()
        await until(lambda: stuck.tried == 2)
        stuck.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [getattr(answer, "text", None) for answer in answers] == [
            *(None, "/1", None, "/3", "/4")
        ]
        assert http.stats("open", "idle", "waiting") == [1, 1, 0]


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (ConnectionRefusedError(), ConnectFailedError),
        (
            ssl.SSLCertVerificationError("certificate has expired"),
            TLSFailedError,
        ),
    ],
)
async def test_a_connection_that_cannot_be_opened_fails_all_who_wait_for_it(
    cause: OSError, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(cause, ssl.SSLCertVerificationError):
        cause.verify_code, cause.verify_message = 10, "certificate has expired"
    async with wired2() as http:
        stuck = Stuck(http, monkeypatch)
        stuck.error = cause
        tasks = asks(http, 5)
        await until(lambda: stuck.tried == 1)
        await turns()
        stuck.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for number, outcome in enumerate(outcomes):
            assert isinstance(outcome, kind)
            assert isinstance(outcome, httpx.ConnectError)
            assert outcome.__cause__ is cause
            assert f"/{number}: " in str(outcome)
        assert len(set(map(id, outcomes))) == 5
        assert stuck.tried == 1
        assert http.stats("open", "connecting", "waiting") == [0, 0, 0]


async def test_each_who_waits_for_a_connection_has_its_own_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    async with wired2(clock=clock) as http:
        stuck = Stuck(http, monkeypatch)
        tasks = [
            asyncio.create_task(http.get("/x", timeout=httpx.Timeout(60, connect=seconds)))
            for seconds in (2.0, 3.0, 30.0)
        ]
        await until(lambda: stuck.tried == 1)
        await turns()
        await clock.advance(2.1)
        with pytest.raises(ConnectTimeoutError):
            await tasks[0]
        await until(lambda: stuck.tried == 2)
        await clock.advance(3.1)
        with pytest.raises(ConnectTimeoutError):
            await tasks[1]
        stuck.gate.set()
        assert (await tasks[2]).text == "/x"


async def test_an_opener_that_waits_for_a_slot_finds_that_others_can_be_joined() -> None:
    async with raw_server(silent) as other, wired2(most=1) as http:
        holding = asyncio.create_task(http.get(other.url, timeout=None))
        await until(lambda: http.stats("open") == [1])
        tasks = asks(http, 4)
        await until(lambda: http.stats("waiting") == [4])
        holding.cancel()
        answers = await asyncio.gather(*tasks)
        assert [answer.text for answer in answers] == ["/0", "/1", "/2", "/3"]
        assert len(http.services) == 1
        assert http.wire._pool._slots.in_flight == 0


@pytest.mark.parametrize("count", range(0, 40, 2))
async def test_closing_at_any_moment_is_never_the_fault_of_the_service_over_http2(
    count: int,
) -> None:
    async with wired2(never, settings={MAX_CONCURRENT_STREAMS: 2}) as http:
        tasks = asks(http, 5)
        if count >= 20:
            await until(lambda: len(http.asked()) == 2)
        await turns(count)
        await http.wire.aclose()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, ConfigurationError | ReadFailedError), repr(outcome)
            assert "closed" in str(outcome)
        await turns()
        assert left_over(http.wire) == NOTHING


async def test_a_storm_of_cancellations_leaves_a_pool_that_serves() -> None:
    async def late(service: Service, stream: Asked) -> None:
        await asyncio.sleep(stream.id % 5 / 1000)
        with contextlib.suppress(ConnectionError):
            await service.answer(stream)

    async with wired2(late, settings={MAX_CONCURRENT_STREAMS: 7}) as http:
        for turn in range(20):
            tasks = asks(http, 30)
            await turns(turn)
            for task in tasks[turn % 3 :: 2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert (await http.get("/x")).text == "/x"
        assert http.stats("open", "idle", "waiting", "connecting") == [1, 1, 0, 0]
        assert http.wire._pool._slots.in_flight == 0
        assert len(http.services) == 1
