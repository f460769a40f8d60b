"""`TLSConfig` in front of real servers, on every way to the network that the SDK has."""

import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.infrastructure.http.errors import TLSFailedError
from shared.infrastructure.http.tls import TLSConfig
from shared.infrastructure.http.tls_failure import tls_reason_of
from tests.tls_server import Authority, serving, tls_server, write_pair
from tests.transports import WAYS, Way


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    kind: Way = request.param
    return kind


@pytest.fixture
def config(authority: Authority, tmp_path: Path) -> TLSConfig:
    """The client's side: the authority to trust, and a certificate for "old.test"."""
    write_pair(tmp_path, authority.issue("old.test"))
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    return TLSConfig(
        ca_file=tmp_path / "ca.pem",
        cert_file=tmp_path / "cert.pem",
        key_file=tmp_path / "key.pem",
    )


@asynccontextmanager
async def client_of(way: Way, config: TLSConfig) -> AsyncIterator[Any]:
    async with way.library.AsyncClient(transport=way.make(config.context(), None)) as client:
        yield client


async def reason_of(client: Any, url: str) -> str:
    """Return why TLS fails: the SDK's wire says so itself, errors of others lead there."""
    try:
        return repr(await client.get(url))
    except TLSFailedError as error:
        return str(error)
    except Exception as error:
        return tls_reason_of(error) or repr(error)


def only(version: ssl.TLSVersion, server: ssl.SSLContext) -> ssl.SSLContext:
    """Return `server`, which now speaks this version only, even if it is out of date."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        server.minimum_version = server.maximum_version = version
    server.set_ciphers("ALL:@SECLEVEL=0")
    return server


async def test_a_client_with_the_certificate_asked_for_is_served(
    way: Way, authority: Authority, config: TLSConfig
) -> None:
    asking = authority.asking(serving(authority.issue()))
    with tls_server(asking) as server:
        async with client_of(way, config) as client:
            for _ in range(2):
                response = await client.get(server.url)
                assert (response.text, response.http_version) == ("ok", way.version)
        assert server.clients == ["old.test"]


@pytest.mark.parametrize(
    ("name", "days", "reason"),
    [
        ("127.0.0.1", -1, "certificate has expired"),
        ("127.0.0.2", 2, "IP address mismatch"),
    ],
)
async def test_a_certificate_that_does_not_do_is_refused_by_name(
    way: Way, authority: Authority, config: TLSConfig, name: str, days: int, reason: str
) -> None:
    with tls_server(serving(authority.issue(name, days=days))) as server:
        async with client_of(way, config) as client:
            assert f"TLS: {reason}" in await reason_of(client, server.url)
        assert server.clients == []


async def test_an_authority_that_is_not_in_the_file_is_unknown(
    way: Way, authority: Authority, config: TLSConfig
) -> None:
    with tls_server(serving(Authority().issue())) as server:
        async with client_of(way, config) as client:
            assert "TLS: unknown authority" in await reason_of(client, server.url)
    with tls_server(serving(authority.issue())) as server:
        async with client_of(way, TLSConfig()) as client:
            assert "TLS: unknown authority" in await reason_of(client, server.url)


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (ssl.TLSVersion.TLSv1_2, "it requires a client certificate"),
        (ssl.TLSVersion.TLSv1_3, "the service requires a client certificate"),
    ],
)
async def test_a_client_without_the_certificate_asked_for_is_told(
    way: Way, authority: Authority, config: TLSConfig, version: ssl.TLSVersion, reason: str
) -> None:
    asking = authority.asking(only(version, serving(authority.issue())))
    bare = TLSConfig(ca_file=config.ca_file)
    with tls_server(asking) as server:
        async with client_of(way, bare) as client:
            assert reason in await reason_of(client, server.url)
        assert server.clients == []


@pytest.mark.parametrize(
    ("version", "minimum"),
    [(ssl.TLSVersion.TLSv1_1, "1.2"), (ssl.TLSVersion.TLSv1_2, "1.3")],
)
async def test_a_version_that_is_too_old_is_refused(
    way: Way, authority: Authority, config: TLSConfig, version: ssl.TLSVersion, minimum: str
) -> None:
    with tls_server(only(version, serving(authority.issue()))) as server:
        strict = TLSConfig.model_validate({**dict(config), "minimum_version": minimum})
        async with client_of(way, strict) as client:
            assert "no version of TLS in common" in await reason_of(client, server.url)
        assert server.clients == []


async def test_files_that_are_replaced_are_in_use_without_a_restart(
    way: Way, authority: Authority, config: TLSConfig, tmp_path: Path
) -> None:
    new = Authority()
    before = tls_server(authority.asking(serving(authority.issue())))
    after = tls_server(new.asking(serving(new.issue())))
    with before as old_server, after as new_server:
        async with client_of(way, config) as client:
            assert (await client.get(old_server.url)).text == "ok"
            assert "unknown authority" in await reason_of(client, new_server.url)

            (tmp_path / "ca.pem").write_bytes(authority.pem + new.pem)
            refused = "does not know the authority of the client certificate"
            assert refused in await reason_of(client, new_server.url)

            write_pair(tmp_path, new.issue("new.test"))
            assert (await client.get(new_server.url)).text == "ok"
            assert (await client.get(old_server.url)).text == "ok"  # on the connection it has
        assert old_server.clients == ["old.test"]
        assert new_server.clients == ["new.test"]


async def test_a_half_written_file_does_not_stop_the_traffic(
    way: Way,
    authority: Authority,
    config: TLSConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    context = config.context()
    content = (tmp_path / "key.pem").read_bytes()
    with tls_server(authority.asking(serving(authority.issue()))) as server:
        for piece in (content[:50], content[:-50], content[:-50], content):
            (tmp_path / "key.pem").write_bytes(piece)
            async with way.library.AsyncClient(transport=way.make(context, None)) as client:
                assert (await client.get(server.url)).text == "ok"
        assert server.clients == ["old.test"] * 4
    assert len([record for record in caplog.records if "key.pem" in record.message]) == 3


def test_synchronous_clients_take_the_context_too(
    authority: Authority, config: TLSConfig, tmp_path: Path
) -> None:
    context = config.context()
    with tls_server(authority.asking(serving(authority.issue()))) as server:
        for name in ("old.test", "new.test"):
            write_pair(tmp_path, authority.issue(name))
            with httpx.Client(verify=context) as client:
                assert client.get(server.url).text == "ok"
        assert server.clients == ["old.test", "new.test"]
