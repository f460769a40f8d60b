"""The clients that stand in front of the wall."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import httpx
import httpx2
import trustme

from shared.infrastructure.http import EnhancedHTTPClient
from shared.infrastructure.http.httpx2 import EnhancedHTTPClient as HTTPX2Client


class Flavour(NamedTuple):
    """A client of ours and the HTTP library it is a client of."""

    library: ModuleType
    client: type[Any]


FLAVOURS = [Flavour(httpx, EnhancedHTTPClient), Flavour(httpx2, HTTPX2Client)]
NAMES = [flavour.library.__name__ for flavour in FLAVOURS]


@cache
def authority() -> trustme.CA:
    return trustme.CA()


@cache
def server_tls(*protocols: str) -> ssl.SSLContext:
    """Return the context of a server that speaks `protocols`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(list(protocols))
    return context


@cache
def client_tls() -> ssl.SSLContext:
    """Return a context that trusts our servers."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


@asynccontextmanager
async def opened(flavour: Flavour, url: str, **options: Any) -> AsyncIterator[Any]:
    """Lend a client for `url`; over TLS it speaks HTTP/2 if the server does."""
    if url.startswith("https"):
        options = {"http2": True, "verify": client_tls(), **options}
    async with flavour.client("wall", url, **options) as client:
        yield client


def busy(client: Any) -> int:
    """Return the connections and requests that a client's pool believes to be under way."""
    stats = client._layered.wire.transport.stats()
    return int(stats["open"] - stats["idle"] + stats["connecting"] + stats["waiting"])
