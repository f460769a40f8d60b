"""The flavour for httpx2: what a user sees of this package, as classes of that library."""

from __future__ import annotations

from shared.infrastructure.http.client import ServiceClient
from shared.infrastructure.http.library import HTTPLibrary
from shared.infrastructure.http.transport import LayeredTransport
from shared.infrastructure.http.wire.transport import PooledTransport
from shared.infrastructure.resilience import MissingExtraError

try:
    import httpx2
except ImportError as exc:
    raise MissingExtraError("the flavour for httpx2", "httpx2") from exc

HTTPX2 = HTTPLibrary(httpx2)


class WireTransport(PooledTransport, httpx2.AsyncBaseTransport):
    """The SDK's own wire; `PooledTransport` says what it takes and does."""

    library = HTTPX2


class ResilientTransport(LayeredTransport, httpx2.AsyncBaseTransport):
    """A transport around layers; `LayeredTransport` says what it takes and does."""

    library = HTTPX2


class EnhancedHTTPClient(ServiceClient, httpx2.AsyncClient):
    """An `httpx2.AsyncClient` for one service; `ServiceClient` says what it takes and does."""

    library = HTTPX2
    wire_class = WireTransport
    transport_class = ResilientTransport
