import asyncio

import pytest
from server_site import PLAIN, STREAM, head_of, site, until

from shared.infrastructure.resilience import ServiceError

LEAVING = b"the process is shutting down"


async def test_pieces_are_sent_as_they_come_and_the_connection_is_kept() -> None:
    async with site() as running:
        reader, writer = await running.ask(STREAM)
        running.source.put(b"one")
        head = await head_of(reader)
        assert "transfer-encoding: chunked" in head
        assert "content-length" not in head
        assert "connection: close" not in head
        assert await reader.readexactly(8) == b"3\r\none\r\n"
        running.source.put(b"", b"x" * 100_000, None)
        assert (
            await reader.readuntil(b"0\r\n\r\n") == b"186a0\r\n" + b"x" * 100_000 + b"\r\n0\r\n\r\n"
        )
        writer.write(PLAIN)
        assert "200 ok" in await head_of(reader)
        assert await reader.readexactly(12) == b'{"name":"x"}'
        assert (running.source.closed, running.source.cancelled) == (1, 0)
        assert running.app.counts == [("/stream", 200), ("/plain/{name}", 200)]


async def test_a_client_of_http_1_0_gets_a_body_that_ends_with_the_connection() -> None:
    async with site() as running:
        reader, _ = await running.ask(STREAM.replace(b"1.1", b"1.0"))
        running.source.put(b"one", b"two", None)
        head = await head_of(reader)
        assert "transfer-encoding" not in head
        assert "connection: close" in head
        assert await reader.read() == b"onetwo"


async def test_who_reads_slowly_holds_up_whoever_makes_the_body() -> None:
    async with site() as running:
        reader, writer = await running.connect(buffer=4096)
        writer.write(STREAM)
        pieces = 400
        running.source.put(*[b"x" * 65_536] * pieces, None)
        await until(lambda: running.source.taken)
        before = -1
        while before != running.source.taken:
            before = running.source.taken
            await asyncio.sleep(0.05)
        assert before < pieces / 2
        (connection,) = running.listener.connections
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < 4 * 65_536
        await head_of(reader)
        received = 0
        while piece := await reader.read(2**20):
            received += len(piece)
            if piece.endswith(b"0\r\n\r\n"):
                break
        assert received > pieces * 65_536
        assert running.source.taken == pieces


@pytest.mark.parametrize("is_polite", [True, False])
@pytest.mark.parametrize("has_begun", [True, False])
async def test_the_body_of_a_client_who_hung_up_is_given_up(
    is_polite: bool, has_begun: bool
) -> None:
    async with site(half_close=False) as running:
        reader, writer = await running.ask(STREAM)
        if has_begun:
            running.source.put(b"one")
        await head_of(reader)
        if is_polite:
            writer.close()
        else:
            writer.transport.abort()
        await until(lambda: running.source.closed)
        assert running.source.cancelled == 1
        assert running.app.counts == [("/stream", 499)]
        assert not running.listener.connections


async def test_who_sends_no_more_still_reads_on_if_that_is_allowed() -> None:
    async with site() as running:
        reader, writer = await running.ask(STREAM)
        running.source.put(b"one")
        await head_of(reader)
        writer.write_eof()
        await asyncio.sleep(0.05)
        running.source.put(b"two", None)
        # The client said too late that it sends no more for the head to say so.
        assert await reader.read() == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


@pytest.mark.parametrize("error", [ServiceError("secret"), RuntimeError("secret")])
async def test_a_failure_in_mid_stream_is_told_in_band_and_no_body_looks_whole(
    error: Exception,
) -> None:
    async with site() as running:
        reader, _ = await running.ask(STREAM + PLAIN)
        running.source.put(b"data: one\n\n", error)
        await head_of(reader)
        rest = await reader.read()
    assert rest.startswith(b"b\r\ndata: one\n\n\r\n")
    assert b'data: {"error":{"message":"the ' in rest
    assert b"secret" not in rest
    assert not rest.endswith(b"0\r\n\r\n")
    assert running.app.counts == [("/stream", 599)]
    assert running.source.closed == 1


async def test_the_next_request_of_a_connection_waits_for_the_end_of_the_stream() -> None:
    async with site() as running:
        reader, _ = await running.ask(STREAM + PLAIN)
        running.source.put(b"one")
        await head_of(reader)
        await asyncio.sleep(0.05)
        assert running.app.counts == []
        running.source.put(None)
        assert await reader.readuntil(b"0\r\n\r\n") == b"3\r\none\r\n0\r\n\r\n"
        assert "200 ok" in await head_of(reader)


async def test_a_live_stream_is_waited_for_when_the_server_leaves() -> None:
    async with site() as running:
        reader, _ = await running.ask(STREAM)
        running.source.put(b"one")
        await head_of(reader)
        running.listener.close()
        closed = asyncio.create_task(running.listener.closed())
        await asyncio.sleep(0.05)
        assert not closed.done()
        running.source.put(b"two", None)
        # It is closed although its head did not say so.
        assert await reader.read() == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        await closed


async def test_a_stream_that_lasts_too_long_is_told_why_it_ends() -> None:
    async with site() as running:
        reader, _ = await running.ask(STREAM)
        running.source.put(b"data: one\n\n")
        await head_of(reader)
        running.listener.close()
        await running.listener.abandon()
        rest = await reader.read()
    assert LEAVING in rest
    assert not rest.endswith(b"0\r\n\r\n")
    assert (running.source.cancelled, running.source.closed) == (1, 1)
    assert running.app.counts == [("/stream", 599)]


async def test_a_connection_too_many_is_told_so() -> None:
    async with site(max_connections=1) as running:
        first, writer = await running.ask(PLAIN)
        assert "200 ok" in await head_of(first)
        second, _ = await running.connect()
        head = await head_of(second)
        assert "503" in head
        assert "retry-after: 1" in head
        assert b"too many connections" in await second.read()
        writer.close()
        await until(lambda: not running.listener.connections)
        third, _ = await running.ask(PLAIN)
        assert "200 ok" in await head_of(third)
