"""The client on real sockets, against a server that answers after a few random milliseconds."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest

from shared.infrastructure.http import (
    ConnectFailedError,
    ConnectionPoolConfig,
    EnhancedHTTPClient,
    PoolTimeoutError,
    ReadTimeoutError,
    RemoteProtocolViolationError,
    TimeoutConfig,
)
from shared.infrastructure.http.uncancelled import UncancelledTransport
from shared.infrastructure.resilience import RetryConfig

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def serve(answer: bytes | None, delays: Iterator[float]) -> AsyncIterator[str]:
    """Answer every request with `answer`, or with silence; close after an odd answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(next(delays))
                if answer is None:
                    await reader.read()
                    break
                writer.write(answer)
                if answer is not OK:
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.close()


def constant(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def random_delays(rng: random.Random, most: float) -> Iterator[float]:
    while True:
        yield rng.random() * most


def busy_connections(http: EnhancedHTTPClient) -> int:
    transport = http._layered.wire.transport
    assert isinstance(transport, UncancelledTransport)
    assert isinstance(transport.inner, httpx.AsyncHTTPTransport)
    pool = transport.inner._pool
    return sum(not connection.is_idle() for connection in pool.connections) + len(pool._requests)


async def test_3000_cancellations_on_a_native_pool_of_10_leave_no_slot_behind() -> None:
    rng = random.Random(11)
    limits = httpx.Limits(max_connections=10, max_keepalive_connections=10)
    native = httpx.AsyncHTTPTransport(limits=limits)
    async with (
        serve(OK, random_delays(rng, 0.004)) as url,
        EnhancedHTTPClient("orders", url, transport=native, retry_config=None) as http,
    ):
        cancelled = 0
        for _ in range(60):
            tasks = [asyncio.create_task(http.get("/x")) for _ in range(50)]
            for task in rng.sample(tasks, 50):
                await asyncio.sleep(rng.random() * 0.0004)
                cancelled += task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert cancelled > 300
        assert (await http.get("/x")).text == "ok"
        for _ in range(1000):  # what was cancelled ends by itself, each within a few milliseconds
            if not busy_connections(http):
                break
            await asyncio.sleep(0.01)
        assert busy_connections(http) == 0
        status = http.get_status()
        assert status["in_flight"] == 0
        assert status["circuit_breaker"]["state"] == "closed"
        responses = await asyncio.gather(*(http.get("/x") for _ in range(30)))
        assert {response.status_code for response in responses} == {200}


async def test_a_refused_connection_is_connect_failed_and_was_never_sent() -> None:
    async with serve(OK, constant(0)) as url:
        pass
    async with EnhancedHTTPClient("down", url, retry_config=RetryConfig(base_delay=0.0)) as http:
        with pytest.raises(ConnectFailedError) as caught:
            await http.post("/x")
    assert caught.value.unsent
    assert caught.value.attempts == 4


async def test_silence_is_a_read_timeout() -> None:
    timeouts = TimeoutConfig(read=0.05)
    async with (
        serve(None, constant(0)) as url,
        EnhancedHTTPClient("mute", url, retry_config=None, timeout_config=timeouts) as http,
    ):
        with pytest.raises(ReadTimeoutError):
            await http.get("/x")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="closed before any answer"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="not HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", id="short body"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", id="cut chunks"
        ),
    ],
)
async def test_a_broken_answer_is_a_protocol_violation_and_never_success(answer: bytes) -> None:
    async with (
        serve(answer, constant(0)) as url,
        EnhancedHTTPClient("broken", url, retry_config=None) as http,
    ):
        with pytest.raises(RemoteProtocolViolationError):
            await http.get("/x")
        assert http.get_status()["circuit_breaker"]["failure_count"] == 1


async def test_a_pool_that_stays_full_is_our_own_fault_and_not_the_services() -> None:
    pool = ConnectionPoolConfig(max_connections=1)
    timeouts = TimeoutConfig(pool=0.05)
    async with (
        serve(OK, constant(0.3)) as url,
        EnhancedHTTPClient(
            "narrow", url, pool_config=pool, timeout_config=timeouts, retry_config=None
        ) as http,
    ):
        first, second = await asyncio.gather(http.get("/x"), http.get("/x"), return_exceptions=True)
        assert isinstance(first, httpx.Response)
        assert isinstance(second, PoolTimeoutError)
        assert http.get_status()["circuit_breaker"]["failure_count"] == 0
