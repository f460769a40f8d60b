"""The clients that stand in front of the wall."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import httpx
import httpx2

from shared.infrastructure.http import EnhancedHTTPClient
from shared.infrastructure.http.httpx2 import EnhancedHTTPClient as HTTPX2Client
from tests.local_tls import client_tls


class Flavour(NamedTuple):
    """A client of ours and the HTTP library it is a client of."""

    library: ModuleType
    client: type[Any]


FLAVOURS = [Flavour(httpx, EnhancedHTTPClient), Flavour(httpx2, HTTPX2Client)]
NAMES = [flavour.library.__name__ for flavour in FLAVOURS]


# One for all clients: to read the public authorities takes longer than most rows.
_trusting = cache(client_tls)


@asynccontextmanager
async def opened(flavour: Flavour, url: str, **options: Any) -> AsyncIterator[Any]:
    """Lend a client for `url`; over TLS it speaks HTTP/2 if the server does."""
    if url.startswith("https"):
        options = {"http2": True, "verify": _trusting(), **options}
    async with flavour.client("wall", url, **options) as client:
        yield client


def busy(client: Any) -> int:
    """Return the connections and requests that a client's pool believes to be under way."""
    stats = client._layered.wire.transport.stats()
    return int(stats["open"] - stats["idle"] + stats["connecting"] + stats["waiting"])
