"""How long a connection waits for its client, and what each of them is owed in the end."""

import asyncio
import json
import socket
from typing import Any

import numpy as np
import process_service
import pytest
from process_wire import BODY, LIVE, POST, Site, site, until, wire

from shared.infrastructure.server.connection import Connection
from shared.infrastructure.server.listener import Listener
from shared.infrastructure.server.messages import Reply

ROWS = 2048
HEAD = POST.removesuffix(BODY)


def wide(item: Any, dimension: int = 0) -> np.ndarray:
    return np.full(1024, 1 / 3, np.float32)


def large(header: bytes = b"") -> bytes:
    """Return a request with an answer of tens of megabytes."""
    body = json.dumps({"dimensions": 1024, "input": ["a"] * ROWS}).encode()
    head = HEAD.replace(b"14", b"%d" % len(body))
    return head.replace(b"Host: a", b"Host: a" + header) + body


async def blocked(running: Site, request: bytes) -> tuple[socket.socket, Connection]:
    """Send a request, and read nothing of its large answer."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    client.setblocking(False)
    await loop.sock_connect(client, running.address)
    await loop.sock_sendall(client, request)
    await until(lambda: any(unsent(each) for each in running.listener.connections))
    (connection,) = running.listener.connections
    return client, connection


def unsent(connection: Connection) -> int:
    transport = connection._transport
    return transport.get_write_buffer_size() if transport else 0


async def drained(client: socket.socket) -> int:
    loop, size = asyncio.get_running_loop(), 0
    async with asyncio.timeout(20):
        while data := await loop.sock_recv(client, 2**20):
            size += len(data)
    return size


async def test_who_reads_slowly_is_waited_for_and_who_stopped_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_service, "vector_of", wide)
    async with site() as running:
        client, connection = await blocked(running, large())
        loop = asyncio.get_running_loop()
        now = running.listener.now()
        for turn in range(5):
            before = unsent(connection)
            async with asyncio.timeout(10):
                while unsent(connection) == before:
                    assert await loop.sock_recv(client, 2**16)
                    await asyncio.sleep(0)
            connection.check(now + 25 * turn)
        assert running.listener.connections
        connection.check(now + 1000)
        connection.check(now + 2000)
        await until(lambda: not running.listener.connections)
        client.close()


async def test_the_last_answer_is_sent_however_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_service, "vector_of", wide)
    async with site() as running:
        client, connection = await blocked(running, large(b"\r\nConnection: close") + LIVE)
        connection.check(running.listener.now() + 10)
        assert await drained(client) > 4 * 1024 * ROWS
        connection.check(running.listener.now())
        connection.check(running.listener.now() + 10)
        await until(lambda: not running.listener.connections)
        client.close()


async def test_time_for_idle_connections_is_none_for_a_request_sent_ahead() -> None:
    async with wire() as (running, client):
        running.service.open.clear()
        client.send(LIVE + POST)
        assert (await client.reply())[0] == 200
        await until(lambda: running.service.calls)
        for connection in running.listener.connections:
            connection.check(running.listener.now() + 1000)
        running.service.open.set()
        assert (await client.reply())[0] == 200


async def test_a_cancellation_from_inside_is_a_500() -> None:
    async with wire() as (running, client):
        running.service.error = asyncio.CancelledError()
        assert (await client.ask(POST))[0] == 500
        running.service.error = None
        assert (await client.ask(POST))[0] == 200


async def test_a_connection_whose_answer_cannot_be_made_is_closed() -> None:
    async with wire() as (running, client):

        async def answer(request: Any) -> Reply:
            return Reply(b"", 1000)

        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        running.app.answer = answer  # type: ignore[method-assign]
        client.send(POST)
        await until(lambda: not running.listener.connections)


async def test_who_asks_whether_to_send_a_second_body_is_told_to() -> None:
    async with wire() as (running, client):
        running.service.open.clear()
        client.send(POST + HEAD.replace(b"Host: a", b"Host: a\r\nExpect: 100-continue"))
        await until(lambda: running.service.calls)
        running.service.open.set()
        assert (await client.reply())[0] == 200
        assert (await client.reply())[0] == 100
        assert (await client.ask(BODY))[0] == 200


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_who_sends_no_more_still_gets_his_answers(version: bytes) -> None:
    requests = (POST + POST).replace(b"HTTP/1.1", version)
    if version == b"HTTP/1.0":
        requests = requests.replace(b"Host", b"Connection: keep-alive\r\nHost")
    async with wire() as (running, client):
        running.service.open.clear()
        client.send(requests)
        client.writer.write_eof()
        await until(lambda: running.service.calls)
        await until(lambda: all(each._is_half_closed for each in running.listener.connections))
        running.service.open.set()
        statuses: list[int] = []
        while len(statuses) < 2:
            status = (await client.reply())[0]
            statuses += [status] if status != 100 else []
        assert statuses == [200, 200]
        assert await client.is_closed()
        assert running.service.cancelled == 0


async def test_a_connection_that_fails_is_closed_and_the_others_are_looked_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look = Connection.check

    def check(connection: Connection, now: float) -> None:
        if connection is broken:
            raise OSError("broken")
        look(connection, now)

    async with site(header_timeout=0.2) as running:
        first = await running.connect()
        await until(lambda: running.listener.connections)
        (broken,) = running.listener.connections
        monkeypatch.setattr(Connection, "check", check)
        other = await running.connect()
        for client in (first, other):
            async with asyncio.timeout(10):
                await asyncio.gather(client.reader.read(), return_exceptions=True)
        await until(lambda: not running.listener.connections)


async def test_bodies_count_while_their_answers_are_made() -> None:
    async with wire() as (running, client):
        running.service.open.clear()
        client.send(POST)
        await until(lambda: running.service.calls)
        assert running.listener.bodies.bytes == len(BODY)
        running.service.open.set()
        assert (await client.reply())[0] == 200
        assert running.listener.bodies.bytes == 0
        running.service.open.clear()
        client.send(POST + POST)
        await until(lambda: running.listener.bodies.bytes == 2 * len(BODY))
        client.reset()
        await until(lambda: running.listener.bodies.bytes == 0)


async def test_who_is_still_sending_when_time_is_up_is_told_to_come_back() -> None:
    async with wire() as (running, client):
        client.send(POST[:-5])
        await until(lambda: running.listener.bodies.bytes)
        running.listener.close()
        await running.listener.abandon()
        assert (await client.reply())[0] == 503


async def test_who_connected_as_the_last_one_is_still_answered() -> None:
    async with site() as running:
        listener = Listener(running.app)
        listener.close()
        theirs, ours = socket.socketpair()
        closed = asyncio.create_task(listener.closed())
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: Connection(listener), ours)
        reader, writer = await asyncio.open_connection(sock=theirs)
        assert not closed.done()
        writer.write(LIVE)
        async with asyncio.timeout(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            await closed
        writer.close()
