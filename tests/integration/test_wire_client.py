"""The whole client on the SDK's own wire."""

import asyncio
import random

import httpx
import pytest

from shared.infrastructure.http import (
    ConnectFailedError,
    ConnectionPoolConfig,
    EnhancedHTTPClient,
    ReadFailedError,
    ReadTimeoutError,
    RemoteProtocolViolationError,
    ResilientTransport,
    TimeoutConfig,
    WireTransport,
)
from shared.infrastructure.http.wire.errors import StaleConnectionError
from shared.infrastructure.resilience import (
    CallStats,
    DeadlineExceededError,
    ObserveLayer,
    RetryConfig,
    deadline,
)
from tests.raw_server import OK, Peer, answering, once, raw_server, silent, turns

FAST = RetryConfig(base_delay=0.0)


async def test_a_stack_of_layers_stands_on_the_wire() -> None:
    stats = CallStats()
    wire = WireTransport()
    async with raw_server(answering(OK)) as server:
        transport = ResilientTransport(wire, ObserveLayer(stats))
        async with httpx.AsyncClient(transport=transport, base_url=server.url) as http:
            assert (await http.get("/x")).text == "ok"
            async with http.stream("GET", "/x") as response:
                assert [chunk async for chunk in response.aiter_text()] == ["ok"]
    assert stats.snapshot()["request_count"] == 2
    assert wire.stats() == {
        "open": 0,
        "idle": 0,
        "connecting": 0,
        "waiting": 0,
        "requests": 2,
        "reused": 1,
    }


async def test_an_error_of_the_wire_reaches_the_caller_as_it_is() -> None:
    async with raw_server(silent) as gone:
        pass
    async with EnhancedHTTPClient(
        "down", gone.url, retry_config=FAST, transport=WireTransport()
    ) as http:
        with pytest.raises(ConnectFailedError) as caught:
            await http.post("/x")
    error = caught.value
    assert isinstance(error, httpx.ConnectError)
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert str(error).endswith("/x: connection refused")
    assert (error.attempts, len(error.earlier), error.unsent) == (4, 3, True)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_body_that_breaks_off_counts_against_the_service(is_streamed: bool) -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
    async with (
        raw_server(once(half)) as server,
        EnhancedHTTPClient(
            "broken", server.url, retry_config=None, transport=WireTransport()
        ) as http,
    ):
        request = http.build_request("GET", "/x")
        with pytest.raises(RemoteProtocolViolationError) as caught:
            await (await http.send(request, stream=is_streamed)).aread()
        assert caught.value.__cause__ is None
        assert http.get_status()["circuit_breaker"]["failure_count"] == 1


async def test_a_get_that_meets_a_stale_connection_is_sent_again_and_nobody_is_blamed() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()

    async with (
        raw_server(script) as server,
        EnhancedHTTPClient("stale", server.url, retry_config=None) as http,
        httpx.AsyncClient(transport=WireTransport(), base_url=server.url) as bare,
    ):
        for _ in range(2):
            assert (await http.get("/x")).text == "ok"
        status = http.get_status()
        assert (status["attempt_count"], status["resent_count"]) == (3, 1)
        assert (status["retry_count"], status["circuit_breaker"]["failure_count"]) == (0, 0)
        # A POST without a key might be carried out twice; and the wire alone sends nothing again.
        assert (await http.get("/x")).text == "ok"
        with pytest.raises(StaleConnectionError):
            await http.post("/x")
        await bare.get("/x")
        with pytest.raises(StaleConnectionError) as caught:
            await bare.get("/x")
        assert isinstance(caught.value, ReadFailedError | httpx.ReadError)


async def test_time_limits_of_the_client_reach_the_wire() -> None:
    async with raw_server(silent) as server:
        limits = TimeoutConfig(read=0.02)
        async with EnhancedHTTPClient(
            "mute",
            server.url,
            retry_config=None,
            timeout_config=limits,
            transport=WireTransport(),
        ) as http:
            with pytest.raises(ReadTimeoutError):
                await http.get("/x")
            with pytest.raises(DeadlineExceededError):
                async with deadline(0.01):
                    await http.get("/x")
            await turns(3)


async def test_1000_cancellations_through_the_whole_client_leave_nothing_behind() -> None:
    rng = random.Random(11)
    wire = WireTransport(ConnectionPoolConfig(max_connections=10, max_keepalive_connections=10))

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.sleep(rng.random() * 0.002)
            await peer.send(OK)

    async with (
        raw_server(script) as server,
        EnhancedHTTPClient("orders", server.url, retry_config=None, transport=wire) as http,
    ):
        cancelled = 0
        while cancelled < 1000:
            tasks = [asyncio.create_task(http.get("/x")) for _ in range(50)]
            for task in rng.sample(tasks, 45):
                await turns(rng.randrange(3))
                cancelled += task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await turns(3)
        stats = wire.stats()
        assert (stats["connecting"], stats["waiting"]) == (0, 0)
        assert stats["open"] == stats["idle"] <= 10
        assert http.get_status()["in_flight"] == 0
        assert http.get_status()["circuit_breaker"]["state"] == "closed"
        responses = await asyncio.gather(*(http.get("/x") for _ in range(30)))
        assert {response.status_code for response in responses} == {200}
    assert wire.stats()["open"] == 0
