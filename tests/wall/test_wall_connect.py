"""Connections that never come to be: nobody there, silence, no trust."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
import trustme

from shared.infrastructure.http import (
    ConnectFailedError,
    ConnectTimeoutError,
    TimeoutConfig,
    TLSFailedError,
    UpstreamError,
)
from tests.local_tls import authority
from tests.raw_server import Peer, RawServer, answering, raw_server, silent
from tests.wall.answers import Version
from tests.wall.flavours import FLAVOURS, NAMES, Flavour, busy, opened
from tests.wall.h1_site import with_length
from tests.wall.leaks import Census, gone_soon
from tests.wall.row import ONCE_MORE


async def hangs_up(_peer: Peer) -> None:
    """Close what was just accepted."""


async def resets(peer: Peer) -> None:
    peer.reset()


async def speaks_plainly(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def with_certificate(issuer: trustme.CA, name: str = "127.0.0.1", days: int = 2) -> ssl.SSLContext:
    now = datetime.now(UTC)
    begins, ends = now - timedelta(days=9), now + timedelta(days=days)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    issuer.issue_cert(name, not_before=begins, not_after=ends).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def trusted(make: Callable[[], ssl.SSLContext]) -> AbstractAsyncContextManager[RawServer]:
    return raw_server(answering(with_length(b"ok")), tls=make())


class Refusal(NamedTuple):
    """A server nobody gets through to.

    Attributes:
        make: Makes the server.
        error: What the client says.
        cause: Class of what is behind it; None if nothing is.
        attempts: Attempts made.
        says: Part of the message.
    """

    make: Callable[[], AbstractAsyncContextManager[RawServer]]
    error: type[UpstreamError]
    cause: type[BaseException] | None
    attempts: int
    says: str


REFUSALS = {
    "closed within the handshake": Refusal(
        lambda: raw_server(hangs_up), ConnectFailedError, OSError, 2, "within the TLS handshake"
    ),
    "reset within the handshake": Refusal(
        lambda: raw_server(resets), ConnectFailedError, OSError, 2, "within the TLS handshake"
    ),
    "silence within the handshake": Refusal(
        lambda: raw_server(silent),
        ConnectTimeoutError,
        asyncio.CancelledError,
        2,
        "longer than 0.1 s",
    ),
    "no TLS": Refusal(
        lambda: raw_server(speaks_plainly), TLSFailedError, ssl.SSLError, 1, "no TLS on this port"
    ),
    "unknown authority": Refusal(
        lambda: trusted(lambda: with_certificate(trustme.CA())),
        TLSFailedError,
        ssl.SSLCertVerificationError,
        1,
        "issuer",
    ),
    "another name": Refusal(
        lambda: trusted(lambda: with_certificate(authority(), "127.0.0.2")),
        TLSFailedError,
        ssl.SSLCertVerificationError,
        1,
        "address mismatch",
    ),
    "expired certificate": Refusal(
        lambda: trusted(lambda: with_certificate(authority(), days=-1)),
        TLSFailedError,
        ssl.SSLCertVerificationError,
        1,
        "expired",
    ),
}


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("flavour", FLAVOURS, ids=NAMES)
async def test_a_connection_that_is_not_to_be_had_is_a_typed_error(
    flavour: Flavour, refusal: Refusal, version: Version
) -> None:
    async with refusal.make() as server:
        census = Census()
        url = server.url.replace("http://", "https://")
        await _ask(flavour, url, refusal, census, server, http2=version == "HTTP/2")


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("flavour", FLAVOURS, ids=NAMES)
async def test_a_port_where_nobody_listens_is_a_typed_error(flavour: Flavour, scheme: str) -> None:
    async with raw_server(silent) as gone:
        census = Census()
    refusal = Refusal(
        lambda: raw_server(silent), ConnectFailedError, ConnectionRefusedError, 2, "refused"
    )
    await _ask(flavour, gone.url.replace("http", scheme), refusal, census, gone)


async def _ask(
    flavour: Flavour, url: str, refusal: Refusal, census: Census, server: RawServer, **more: Any
) -> None:
    limits = TimeoutConfig(connect=0.1 if refusal.error is ConnectTimeoutError else 5.0)
    options = {"retry_config": ONCE_MORE, "timeout_config": limits, **more}
    async with opened(flavour, url, **options) as client:
        with pytest.raises(refusal.error, match=refusal.says) as caught:
            await client.post("/order", content=b"order")
        error = caught.value
        assert type(error).__name__ == refusal.error.__name__
        assert isinstance(error, flavour.library.TransportError)
        assert isinstance(error.__cause__, refusal.cause or type(None))
        assert error.host == url.partition("//")[2]
        assert (error.attempts, error.unsent, error.phase) == (refusal.attempts, True, "connect")
        failures = client.get_status()["circuit_breaker"]["window_failures"]
        assert failures == refusal.attempts
        await gone_soon(lambda: busy(client))
    await census.nothing_is_left(server)
