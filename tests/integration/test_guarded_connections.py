"""The guard of addresses on real connections, on both versions of HTTP and both libraries."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from shared.infrastructure.http.addresses import (
    AddressRefusedError,
    allow_networks,
    public_addresses_only,
)
from shared.infrastructure.http.tls_failure import tls_reason_of
from tests.raw_server import answering, raw_server
from tests.tls_server import Authority, TLSServer, serving, tls_server
from tests.transports import WIRES, Way

HERE = allow_networks("127.0.0.1")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(params=WIRES.values(), ids=WIRES)
def way(request: pytest.FixtureRequest) -> Way:
    kind: Way = request.param
    return kind


@pytest.fixture
def server(authority: Authority) -> Iterator[TLSServer]:
    """A server with a certificate for a.test, on 127.0.0.1."""
    with tls_server(serving(authority.issue("a.test"))) as running:
        yield running


class Resolver:
    """Lets every name mean what is in `answers`, one answer after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.getaddrinfo)

    async def getaddrinfo(self, host: Any, port: int, **_: object) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        ip = self._answers.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))]


def client_of(way: Way, authority: Authority, check: Any) -> Any:
    return way.library.AsyncClient(transport=way.make(authority.client(), check))


async def test_a_name_leads_where_it_was_checked_to_lead_and_not_elsewhere_a_moment_later(
    way: Way, authority: Authority, server: TLSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []

    def check(ip: str) -> None:
        checked.append(ip)
        HERE(ip)

    # To ask twice would be to get another answer: the trick of DNS rebinding.
    resolver = Resolver(monkeypatch, "127.0.0.1", "127.0.0.9")
    async with client_of(way, authority, check) as client:
        for _ in range(2):
            response = await client.get(f"https://a.test:{server.port}/")
            assert (response.text, response.http_version) == ("ok", way.version)
    assert resolver.asked == ["a.test"]
    assert checked == ["127.0.0.1"]
    assert server.accepted == 1


async def test_the_name_is_what_tls_asks_for_and_checks(
    way: Way, authority: Authority, server: TLSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    Resolver(monkeypatch, "127.0.0.1", "127.0.0.1")
    async with client_of(way, authority, HERE) as client:
        assert (await client.get(f"https://a.test:{server.port}/")).text == "ok"
        with pytest.raises(way.library.ConnectError) as caught:
            await client.get(f"https://b.test:{server.port}/")
    assert "Hostname mismatch" in (tls_reason_of(caught.value) or "")
    assert server.names == ["a.test", "b.test"]


async def test_a_new_connection_is_checked_anew(
    way: Way, authority: Authority, server: TLSServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    Resolver(monkeypatch, "127.0.0.1", "127.0.0.9")
    async with client_of(way, authority, HERE) as client:
        assert (await client.get(f"https://a.test:{server.port}/")).text == "ok"
        with pytest.raises(AddressRefusedError, match=r"127\.0\.0\.9"):
            await client.get(f"https://b.test:{server.port}/")


@pytest.mark.parametrize("host", ["a.test", "127.0.0.1", "127.1", "2130706433", "[::1]"])
async def test_a_refused_address_is_never_connected_to(
    way: Way, authority: Authority, server: TLSServer, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    if host == "a.test":
        Resolver(monkeypatch, "127.0.0.1")
    async with client_of(way, authority, public_addresses_only) as client:
        for scheme in ("http", "https"):
            if scheme == "https" and host == "a.test":
                Resolver(monkeypatch, "127.0.0.1")
            with pytest.raises(AddressRefusedError) as caught:
                await client.get(f"{scheme}://{host}:{server.port}/")
            # Or whatever retries errors of the network would try this one again.
            assert not isinstance(caught.value, way.library.TransportError)
    assert server.accepted == 0


async def test_a_redirect_to_a_refused_address_is_not_followed(
    way: Way, authority: Authority
) -> None:
    location = b"Location: http://169.254.169.254/latest/meta-data/\r\n"
    redirect = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n" + location + b"\r\n"
    async with raw_server(answering(redirect)) as raw, client_of(way, authority, HERE) as client:
        with pytest.raises(AddressRefusedError, match=r"169\.254\.169\.254"):
            await client.get(raw.url, follow_redirects=True)
