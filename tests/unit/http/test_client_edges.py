"""What one call must not do to the next, to a file, or to whoever waits."""

import asyncio
import gc
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.infrastructure.http import ReadTimeoutError, TimeoutConfig
from shared.infrastructure.http.bodies import Body, body_of
from shared.infrastructure.resilience import (
    BulkheadConfig,
    DeadlineExceededError,
    HedgeConfig,
    RetryConfig,
    deadline,
)
from tests.raw_server import OK, Peer, answering, raw_server
from tests.unit.http.flavours import FLAVOURS, Flavour

FAST = RetryConfig(base_delay=0.0)
both = pytest.mark.parametrize("flavour", FLAVOURS)


async def sent(body: Body) -> bytes:
    return b"".join([chunk async for chunk in body])


async def test_two_attempts_may_read_one_file_at_the_same_time() -> None:
    body = body_of(io.BytesIO(bytes(range(256)) * 8192))
    assert isinstance(body, Body)
    first, second = await asyncio.gather(sent(body), sent(body))
    assert first == second == bytes(range(256)) * 8192


@both
async def test_files_of_a_form_are_not_hedged(flavour: Flavour) -> None:
    arrived = 0

    async def slow(request: Any) -> Any:
        nonlocal arrived
        arrived += 1
        await asyncio.sleep(0.05)
        return flavour.library.Response(200)

    hedge = HedgeConfig(delay=0.01)
    async with flavour.client(slow, retry_config=None, hedge_config=hedge) as client:
        request = client.build_request("PUT", "/x", files={"f": io.BytesIO(b"1")})
        assert not request.extensions.get("replayable")
        await client.put("/x")
    assert arrived == 2  # as what has no files is


@both
async def test_a_deadline_leaves_no_mark_on_the_request(flavour: Flavour) -> None:
    seen: list[Any] = []

    def handle(request: Any) -> Any:
        seen.append((dict(request.extensions["timeout"]), request.headers.get("x-left")))
        return flavour.library.Response(200)

    async with flavour.client(handle, deadline_header="x-left") as client:
        request = client.build_request("GET", "/x")
        async with deadline(3.0):
            await client.send(request)
        await client.send(request)
    assert seen[0][0]["read"] <= 3.0
    assert int(seen[0][1]) <= 3000
    assert seen[1] == ({"connect": 5.0, "read": 30.0, "write": 10.0, "pool": 5.0}, None)


@both
async def test_a_streamed_body_has_the_read_limit_of_the_client_and_not_what_was_left(
    flavour: Flavour,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
        await asyncio.sleep(0.4)
        await peer.send(b"k")

    limits = TimeoutConfig(total=0.2)
    async with raw_server(script) as server:
        client = flavour.ours.EnhancedHTTPClient("slow", server.url, timeout_config=limits)
        async with client, client.stream("GET", "/x") as response:
            assert await response.aread() == b"ok"


@both
async def test_the_total_is_that_of_all_redirects_together(flavour: Flavour) -> None:
    async def handle(request: Any) -> Any:
        await asyncio.sleep(0.15)
        return flavour.library.Response(302, headers={"Location": "/x"})

    limits = TimeoutConfig(total=0.3)
    async with flavour.client(handle, timeout_config=limits, follow_redirects=True) as client:
        with pytest.raises(DeadlineExceededError):
            await client.get("/x")


@both
async def test_one_request_that_takes_too_long_is_an_error_and_no_cancellation(
    flavour: Flavour,
) -> None:
    async def handle(request: Any) -> Any:
        await asyncio.sleep(30)

    limits = TimeoutConfig(total=0.05)
    async with flavour.client(handle, timeout_config=limits, auth=("me", "secret")) as client:
        with pytest.raises(DeadlineExceededError):
            await client.get("/x")
        assert client.get_status()["error_count"] == 1


@both
@pytest.mark.parametrize(
    "value",
    [
        "Fri, 31 Dec 1999 23:59:59 +99999999999999999999",
        "Fri, 31 Dec 99999999999999999999999 23:59:59 GMT",
    ],
)
async def test_a_retry_after_that_is_nonsense_is_none(flavour: Flavour, value: str) -> None:
    answers = iter([503, 200])

    def handle(request: Any) -> Any:
        return flavour.library.Response(next(answers), headers={"Retry-After": value})

    async with flavour.client(handle, retry_config=FAST) as client:
        assert (await client.get("/x")).status_code == 200


@both
async def test_hooks_may_look_at_the_time_an_answer_took(flavour: Flavour) -> None:
    seen: list[float] = []

    async def hook(response: Any) -> None:
        await response.aread()
        seen.append(response.elapsed.total_seconds())

    async with raw_server(answering(OK)) as server:
        client = flavour.ours.EnhancedHTTPClient("x", server.url, event_hooks={"response": [hook]})
        async with client:
            await client.get("/x")
    assert seen[0] > 0.0


class Reader:
    """Something that can be read, and iterated over, only asynchronously."""

    async def read(self, size: int) -> bytes:
        raise AssertionError("it is iterated over")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"12"


@pytest.mark.parametrize("content", [bytearray(b"12"), memoryview(b"12"), Reader()])
async def test_whatever_the_library_takes_is_taken(content: Any) -> None:
    body = body_of(content)
    assert (await sent(body) if isinstance(body, Body) else body) == b"12"


async def test_closing_does_not_swallow_the_cancellation_of_its_caller() -> None:
    flavour: Flavour = FLAVOURS[0].values[0]  # type: ignore[assignment]

    async def handle(request: Any) -> Any:
        return flavour.library.Response(200)

    client = flavour.client(handle, health_check_path="/x")
    await client.__aenter__()
    task = asyncio.ensure_future(client.aclose())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.is_closed


def drop(held: list[Any]) -> None:
    held.clear()
    gc.collect()


@both
async def test_a_stream_that_is_dropped_gives_its_slot_back(flavour: Flavour) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await peer.gone()

    async with raw_server(script) as server:
        client = flavour.ours.EnhancedHTTPClient(
            "x", server.url, bulkhead_config=BulkheadConfig(max_concurrent=1)
        )
        async with client:
            response = await client.send(client.build_request("GET", "/x"), stream=True)
            assert client.get_status()["bulkhead"]["in_flight"] == 1
            dropped = [response]
            del response
            with pytest.warns(ResourceWarning):
                await asyncio.to_thread(drop, dropped)
            await asyncio.sleep(0.05)
            status = client.get_status()
    assert (status["bulkhead"]["in_flight"], status["in_flight"]) == (0, 0)


@both
async def test_params_that_are_changed_later_are_changed(flavour: Flavour) -> None:
    seen: list[str] = []

    def handle(request: Any) -> Any:
        seen.append(request.url.query.decode())
        return flavour.library.Response(200)

    async with flavour.client(handle, params={"p": "1"}) as client:
        await client.get("/x")
        client.params = {}
        await client.get("/x")
        client.params = {"q": "2"}
        await client.get("/x")
    assert seen == ["p=1", "", "q=2"]


@both
async def test_a_health_check_is_no_attempt(flavour: Flavour) -> None:
    def handle(request: Any) -> Any:
        return flavour.library.Response(200)

    async with flavour.client(handle, health_check_path="/healthz") as client:
        await client.check_health()
        assert client.get_status()["attempt_count"] == 0


@both
async def test_silence_in_a_body_that_is_read_whole_ends_with_the_deadline(
    flavour: Flavour,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await peer.gone()

    limits = TimeoutConfig(total=0.1)
    async with raw_server(script) as server:
        client = flavour.ours.EnhancedHTTPClient(
            "x", server.url, timeout_config=limits, retry_config=None
        )
        async with client:
            with pytest.raises((DeadlineExceededError, ReadTimeoutError)):
                await client.get("/x")
