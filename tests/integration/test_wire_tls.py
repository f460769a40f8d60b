"""TLS on the wire, with certificates that are right and wrong in every way that has a name."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from shared.infrastructure.http import ConnectionPoolConfig, WireTransport
from shared.infrastructure.http.errors import ConnectFailedError, ReadFailedError, TLSFailedError
from tests.raw_server import OK, Peer, RawServer, Script, answering, raw_server, turns
from tests.tls_server import Authority, serving, tls_server


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def asking_for_a_certificate(authority: Authority) -> ssl.SSLContext:
    return authority.asking(serving(authority.issue()))


@asynccontextmanager
async def tls_client(
    script: Script, server: ssl.SSLContext, client: ssl.SSLContext | None
) -> AsyncIterator[tuple[httpx.AsyncClient, WireTransport, RawServer]]:
    async with raw_server(script, tls=server) as raw:
        wire = WireTransport(tls=client)
        async with httpx.AsyncClient(transport=wire, base_url=raw.url) as http:
            yield http, wire, raw
        assert wire.stats()["open"] == 0
        await asyncio.sleep(0.01)  # let the handshakes that failed end on the other side


async def test_a_good_certificate_is_accepted_and_only_http_1_is_offered(
    authority: Authority,
) -> None:
    context = authority.client()
    context.set_alpn_protocols(["h2"])
    server = serving(authority.issue())
    async with tls_client(answering(OK), server, context) as (http, wire, raw):
        for _ in range(3):
            assert (await http.get("/x")).text == "ok"
        assert wire.stats()["reused"] == 2
        chosen = raw.peers[0].writer.get_extra_info("ssl_object").selected_alpn_protocol()
        assert chosen == "http/1.1"


async def test_the_name_is_told_to_the_service_and_checked(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str | None] = []
    server = serving(authority.issue("a.test"))
    server.sni_callback = lambda _sock, name, _context: told.append(name)
    async with tls_client(answering(OK), server, authority.client()) as (http, _, raw):
        port = httpx.URL(raw.url).port
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def getaddrinfo(_host: str, port: int, **options: int) -> object:
            return await real("127.0.0.1", port, **options)

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        assert (await http.get(f"https://a.test:{port}/")).text == "ok"
        with pytest.raises(TLSFailedError, match="Hostname mismatch"):
            await http.get(f"https://b.test:{port}/")
        assert told == ["a.test", "b.test"]


@pytest.mark.parametrize(
    ("subject", "days", "reason"),
    [
        ("127.0.0.1", -1, "certificate has expired"),
        ("127.0.0.2", 2, "IP address mismatch"),
    ],
)
async def test_a_bad_certificate_is_refused_by_name_before_anything_is_sent(
    authority: Authority, subject: str, days: int, reason: str
) -> None:
    server = serving(authority.issue(subject, days=days))
    async with tls_client(answering(OK), server, authority.client()) as (http, wire, raw):
        with pytest.raises(TLSFailedError, match=f"TLS: .*{reason}") as caught:
            await http.get("/x")
        assert isinstance(caught.value, httpx.ConnectError)
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        assert caught.value.unsent
        await turns()
        assert wire.stats()["open"] == 0
        assert raw.peers == []


async def test_an_unknown_authority_is_refused_by_name_by_default(authority: Authority) -> None:
    server = serving(authority.issue())
    async with tls_client(answering(OK), server, None) as (http, _, _raw):
        with pytest.raises(TLSFailedError, match="TLS: unknown authority: unable to get local"):
            await http.get("/x")


async def test_a_service_that_speaks_no_tls_says_so() -> None:
    async def plain(peer: Peer) -> None:
        await peer.reader.read(100)
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with raw_server(plain) as raw, httpx.AsyncClient(transport=WireTransport()) as http:
        with pytest.raises(TLSFailedError, match=r"no TLS on this port .*(version|record layer)"):
            await http.get(raw.url.replace("http", "https"))


@pytest.mark.parametrize(
    ("version", "is_foreign", "reason"),
    [
        (ssl.TLSVersion.TLSv1_2, False, "refuses the handshake: .*handshake failure"),
        (ssl.TLSVersion.TLSv1_3, False, "requires a client certificate .*certificate required"),
        (ssl.TLSVersion.TLSv1_2, True, "does not know the authority of .*unknown ca"),
        (ssl.TLSVersion.TLSv1_3, True, "does not know the authority of .*unknown ca"),
    ],
)
async def test_a_client_whose_certificate_is_missing_or_not_accepted_is_told(
    authority: Authority,
    version: ssl.TLSVersion,
    is_foreign: bool,
    reason: str,
) -> None:
    server = asking_for_a_certificate(authority)
    server.maximum_version = version
    foreign = Authority().issue("client.test") if is_foreign else None
    wire = WireTransport(tls=authority.client(foreign))
    with tls_server(server) as refusing:
        async with httpx.AsyncClient(transport=wire) as http:
            with pytest.raises(TLSFailedError, match=f"TLS: .*{reason}") as caught:
                await http.post(refusing.url, content=b"hello")
            assert isinstance(caught.value.__cause__, ssl.SSLError)
            assert caught.value.unsent
            await turns()
            assert wire.stats()["open"] == 0
        assert refusing.clients == []


async def test_a_client_with_the_certificate_asked_for_is_served(authority: Authority) -> None:
    server = asking_for_a_certificate(authority)
    client = authority.client(authority.issue("client.test"))
    async with tls_client(answering(OK), server, client) as (http, _, _raw):
        assert (await http.get("/x")).text == "ok"


async def test_a_service_that_hangs_up_within_the_handshake_is_named(
    authority: Authority,
) -> None:
    server = asking_for_a_certificate(authority)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    async with tls_client(answering(OK), server, authority.client()) as (http, _, _raw):
        with pytest.raises(ConnectFailedError, match="within the TLS handshake") as caught:
            await http.get("/x")
        assert not isinstance(caught.value, TLSFailedError)  # it may go better the next time


async def test_big_bodies_go_both_ways_under_tls(authority: Authority) -> None:
    size = 5_000_000

    async def echo(peer: Peer) -> None:
        while True:
            await peer.request()
            body = await peer.body(size)
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body)

    content = bytes(range(250)) * (size // 250)
    server = serving(authority.issue())
    async with tls_client(echo, server, authority.client()) as (http, wire, _raw):
        for _ in range(2):
            assert (await http.post("/x", content=content)).content == content
        assert wire.stats()["reused"] == 1


async def test_only_as_many_idle_connections_are_closed_as_make_room(authority: Authority) -> None:
    server, plain = serving(authority.issue()), answering(OK)
    pool = ConnectionPoolConfig(max_connections=3)
    async with raw_server(plain, tls=server) as raw, raw_server(plain) as other:
        wire = WireTransport(pool, tls=authority.client())
        async with httpx.AsyncClient(transport=wire) as http:
            await asyncio.gather(*(http.get(raw.url) for _ in range(3)))
            assert (await http.get(other.url)).text == "ok"
            assert wire.stats()["open"] == wire.stats()["idle"] == 3
        await asyncio.sleep(0.01)


async def test_a_body_that_ends_with_the_connection_is_whole_under_tls(
    authority: Authority,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nto the end")

    server = serving(authority.issue())
    async with tls_client(script, server, authority.client()) as (http, wire, _raw):
        assert (await http.get("/x")).text == "to the end"
        await turns()
        assert wire.stats()["open"] == 0


async def test_an_unfinished_exchange_is_closed_at_once_under_tls(authority: Authority) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await peer.gone()

    server = serving(authority.issue())
    async with tls_client(script, server, authority.client()) as (http, wire, _raw):
        async with http.stream("GET", "/x"):
            pass
        await turns(4)
        assert wire.stats()["open"] == 0


async def test_a_connection_that_breaks_under_tls_is_a_read_failure(authority: Authority) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await asyncio.sleep(0.01)
        peer.reset()

    server = serving(authority.issue())
    async with tls_client(script, server, authority.client()) as (http, _, _raw):
        with pytest.raises(ReadFailedError):
            await http.get("/x")


async def test_bytes_that_do_not_decrypt_are_no_reason_to_say_that_nothing_was_sent(
    authority: Authority,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        below = peer.writer.get_extra_info("socket").fileno()
        os.write(below, b"\x17\x03\x03\x00\x20" + b"?" * 32)
        await peer.gone()

    server = serving(authority.issue())
    async with tls_client(script, server, authority.client()) as (http, _, _raw):
        with pytest.raises(ReadFailedError, match="before it answered") as caught:
            await http.post("/x")
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        assert not caught.value.unsent
