import asyncio
import json
import socket

import pytest
from process_wire import BODY, LIVE, POST, site, until, wire


async def test_a_connection_carries_one_request_after_the_other() -> None:
    async with wire() as (_, client):
        for _ in range(3):
            status, headers, body = await client.ask(POST)
            assert status == 200
            assert "connection" not in headers
            assert "date" in headers
            assert json.loads(body)["data"][0]["index"] == 0
        assert (await client.ask(LIVE))[0] == 200


async def test_requests_sent_ahead_are_answered_in_their_order() -> None:
    async with wire() as (running, client):
        running.service.open.clear()
        many = 20
        client.send(
            b"".join([POST.replace(b'"a"', b'"%c"' % (97 + i)) + LIVE for i in range(many)])
        )
        await until(lambda: running.service.calls)
        running.service.open.set()
        for number in range(many):
            assert b'"list"' in (await client.reply())[2]
            assert b"alive" in (await client.reply())[2]
            assert running.service.calls[number][0] == [chr(97 + number)]


async def test_a_head_and_a_body_may_come_byte_by_byte() -> None:
    async with wire() as (_, client):
        for byte in POST:
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.reply())[0] == 200


async def test_a_chunked_body_is_read_and_its_trailers_are_ignored() -> None:
    chunked = POST.replace(b"Content-Length: 14", b"Transfer-Encoding: chunked")
    body = b"5\r\n" + BODY[:5] + b"\r\n9;x=y\r\n" + BODY[5:] + b"\r\n0\r\nHost: evil\r\n\r\n"
    async with wire() as (_, client):
        for _ in range(2):
            assert (await client.ask(chunked.removesuffix(BODY) + body))[0] == 200


@pytest.mark.parametrize("ask", [b"Connection: close", b"HTTP/1.0"])
async def test_the_connection_ends_when_the_client_wants_it(ask: bytes) -> None:
    request = LIVE.replace(b"HTTP/1.1", ask) if b"/" in ask else LIVE[:-2] + ask + b"\r\n\r\n"
    async with wire() as (_, client):
        status, headers, _ = await client.ask(request)
        assert (status, headers["connection"]) == (200, "close")
        assert await client.is_closed()


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE"])
async def test_another_method_is_a_405_and_the_connection_stays(method: str) -> None:
    async with wire() as (_, client):
        client.send(b"%b /v1/embeddings HTTP/1.1\r\nHost: a\r\n\r\n" % method.encode())
        status, headers, _ = await client.reply(has_body=method != "HEAD")
        assert (status, headers["allow"]) == (405, "post")
        assert (await client.ask(LIVE))[0] == 200


async def test_who_asks_whether_to_send_the_body_is_told_to() -> None:
    head = POST.removesuffix(BODY).replace(b"Host: a", b"Host: a\r\nExpect: 100-continue")
    async with wire() as (_, client):
        status, headers, _ = await client.ask(head)
        assert (status, headers) == (100, {})
        assert (await client.ask(BODY))[0] == 200


async def test_who_asks_whether_to_send_a_body_that_is_too_large_is_told_not_to() -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
    async with wire(max_body_bytes=100) as (_, client):
        assert (await client.ask(head + b"Content-Length: 101\r\n\r\n"))[0] == 413
        assert await client.is_closed()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.1\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.1\nHost: a\n\n", 400),
        (POST.replace(b"\r\nContent", b"\r\nTransfer-Encoding: chunked\r\nContent"), 400),
        (POST.replace(b"\r\nContent", b"\r\nContent-Length: 3\r\nContent"), 400),
        (POST.replace(b"Content-Length: 14", b"Transfer-Encoding: gzip, chunked"), 400),
        (POST.replace(b"Content-Length: 14", b"Content-Length: +14"), 400),
        (POST.replace(b"Host: a", b"Host: a\r\nExpect: more"), 417),
        (POST.replace(b"Content-Length: 14", b"Content-Length: 99999999"), 413),
        (b"GET /health/live HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 70_000, 431),
        (b"GET /" + b"y" * 70_000, 431),
    ],
)
async def test_what_another_reader_might_read_otherwise_is_refused(
    request_bytes: bytes, status: int
) -> None:
    async with wire() as (running, client):
        found, headers, body = await client.ask(request_bytes)
        assert (found, headers["connection"]) == (status, "close")
        assert json.loads(body)["error"]["message"]
        assert await client.is_closed()
        assert running.service.calls == []


async def test_a_request_as_to_a_proxy_and_an_escaped_path_lead_to_the_route() -> None:
    async with wire() as (_, client):
        for target in (b"http://a/health/live", b"/health/%6cive", b"/health/live?x=/v1"):
            assert (await client.ask(LIVE.replace(b"/health/live", target)))[0] == 200


async def test_a_refused_request_with_a_small_body_leaves_the_connection_usable() -> None:
    async with wire(api_keys="key") as (_, client):
        assert (await client.ask(POST))[0] == 401
        assert (await client.ask(LIVE))[0] == 200


async def test_a_large_body_that_nobody_wants_is_refused_before_it_is_here() -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n"
    async with wire(api_keys="key") as (_, client):
        status, headers, _ = await client.ask(head + b"x" * 1000)
        assert (status, headers["connection"]) == (401, "close")
        client.send(b"x" * 100_000)
        assert await client.is_closed()


async def test_a_chunked_body_is_counted_while_it_comes() -> None:
    head = POST.removesuffix(BODY).replace(b"Content-Length: 14", b"Transfer-Encoding: chunked")
    async with wire(max_body_bytes=10_000) as (_, client):
        client.send(head)
        for _ in range(11):
            client.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert (await client.reply())[0] == 413
        assert await client.is_closed()


async def test_bodies_of_all_connections_are_bounded_together() -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
    async with site(max_body_bytes=1000) as running:
        clients = [await running.connect() for _ in range(9)]
        for client in clients[:8]:
            client.send(head + b"x" * 990)
        await until(lambda: running.listener.bodies.bytes == 7920)
        status, headers, _ = await clients[8].ask(head + b"x" * 990)
        assert (status, headers["retry-after"]) == (503, "1")
        for client in clients:
            client.reset()
        await until(lambda: running.listener.bodies.bytes == 0)
        assert (await (await running.connect()).ask(POST))[0] == 200


@pytest.mark.parametrize(
    ("start", "trickle", "setting"),
    [
        (b"GET /health/live HTTP/1.1\r\n", b"x: y\r\n", "header_timeout"),
        (b"GET /", b"x", "header_timeout"),
        (POST[:-5], b"", "body_timeout"),
        (POST.removesuffix(BODY).replace(b"14", b"900"), b" ", "body_timeout"),
    ],
)
async def test_a_request_that_does_not_come_in_time_is_cut(
    start: bytes, trickle: bytes, setting: str
) -> None:
    seconds = {"header_timeout": 1.0, "body_timeout": 0.2}
    async with wire(**{setting: seconds[setting]}) as (_, client):
        client.send(start)
        reply = asyncio.create_task(client.reply())
        while not reply.done():
            client.send(trickle)
            await asyncio.sleep(0.01)
        assert (await reply)[0] == 408


async def test_a_connection_without_a_request_is_closed_without_a_word() -> None:
    async with wire(header_timeout=0.1) as (_, client):
        assert await client.is_closed()


async def test_an_idle_connection_is_kept_for_a_while_only() -> None:
    async with wire(keep_alive=0.2) as (_, client):
        assert (await client.ask(LIVE))[0] == 200
        assert await client.is_closed()


async def test_a_slow_answer_is_no_slow_client() -> None:
    async with wire() as (running, client):
        running.service.open.clear()
        client.send(POST)
        await until(lambda: running.service.calls)
        for connection in running.listener.connections:
            connection.check(running.listener.now() + 1000)
        running.service.open.set()
        assert (await client.reply())[0] == 200


async def test_who_does_not_read_his_answer_is_cut_off() -> None:
    texts = json.dumps({"input": ["a"] * 2048}).encode()
    request = POST.removesuffix(BODY).replace(b"14", b"%d" % len(texts)) + texts
    async with wire(body_timeout=0.2) as (running, client):
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.writer.transport.pause_reading()
        client.send(request * 40)
        await until(lambda: running.service.calls)
        await until(lambda: not running.listener.connections)
        assert len(running.service.calls) < 40


async def test_what_a_client_who_hung_up_wanted_is_given_up() -> None:
    async with wire() as (running, client):
        running.service.open.clear()
        client.send(POST)
        await until(lambda: running.service.calls)
        client.reset()
        await until(lambda: running.service.cancelled == 1)
        metrics = (await (await running.connect()).ask(LIVE.replace(b"health/live", b"metrics")))[2]
        assert b'emb_requests_total{route="/v1/embeddings",status="499"} 1.0' in metrics


async def test_it_lives_and_says_so_while_the_model_is_stuck() -> None:
    async with wire() as (running, client):
        running.service.open.clear()
        client.send(POST)
        await until(lambda: running.service.calls)
        other = await running.connect()
        assert (await other.ask(LIVE))[2] == b'{"status":"alive"}'
        assert (await other.ask(LIVE.replace(b"live", b"ready")))[0] == 200
        running.service.open.set()
        assert (await client.reply())[0] == 200


async def test_a_draining_process_answers_the_first_of_those_sent_ahead_and_closes() -> None:
    async with wire() as (running, client):
        running.app.draining = True
        status, headers, _ = await client.ask(POST * 3)
        assert (status, headers["connection"]) == (200, "close")
        assert await client.is_closed()
        assert len(running.service.calls) == 1


async def test_a_repetition_is_answered_without_asking_the_service_again() -> None:
    async with wire() as (running, client):
        replies = [
            await client.ask(POST.replace(b"14", b"19").replace(b'"a"', b'"cached"'))
            for _ in range(3)
        ]
        assert len({body for _, _, body in replies}) == 1
        assert len(running.service.calls) == 1


async def test_closing_lets_requests_in_flight_end_and_takes_no_more() -> None:
    async with site() as running:
        idle, busy = await running.connect(), await running.connect()
        assert (await idle.ask(LIVE))[0] == 200
        running.service.open.clear()
        busy.send(POST)
        await until(lambda: running.service.calls)
        running.listener.close()
        assert await idle.is_closed()
        with pytest.raises(ConnectionRefusedError):
            await running.connect()
        running.service.open.set()
        status, headers, _ = await busy.reply()
        assert (status, headers["connection"]) == (200, "close")
        async with asyncio.timeout(10):
            await running.listener.closed()


async def test_who_is_not_done_when_time_is_up_is_told_to_come_back() -> None:
    async with wire() as (running, client):
        running.service.open.clear()
        client.send(POST)
        await until(lambda: running.service.calls)
        running.listener.close()
        await running.listener.abandon()
        status, headers, _ = await client.reply()
        assert (status, headers["retry-after"]) == (503, "1")
        assert running.service.cancelled == 1
        assert not running.listener.connections


async def test_many_connections_each_get_their_own_answers() -> None:
    async with site() as running:

        async def talk(number: int) -> None:
            client = await running.connect()
            for turn in range(10):
                text = f"{number}-{turn}"
                body = json.dumps({"input": text, "embed_dtype": "ubinary"}).encode()
                request = POST.removesuffix(BODY).replace(b"14", b"%d" % len(body)) + body
                answer = json.loads((await client.ask(request))[2])
                wanted = await running.service.embed_batch([text])
                bits = [int(bit) for bit in (wanted.vectors[0] > 0)]
                got = [
                    byte >> (7 - bit) & 1
                    for byte in answer["data"][0]["embedding"]
                    for bit in range(8)
                ]
                assert got == bits
            client.reset()

        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(talk(number))
