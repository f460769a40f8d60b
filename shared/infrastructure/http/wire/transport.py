"""The wire as a transport, written once for httpx and httpx2: see `http.library`."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, cast

from shared.infrastructure.http.config import ConnectionPoolConfig
from shared.infrastructure.http.errors import LocalProtocolViolationError, UpstreamError
from shared.infrastructure.http.extensions import BUFFERED, PATIENCE
from shared.infrastructure.http.library import HTTPX, HTTPLibrary
from shared.infrastructure.http.wire.alpn import EITHER, HTTP1
from shared.infrastructure.http.wire.connect import Connector
from shared.infrastructure.http.wire.exchange import ReceivedBody
from shared.infrastructure.http.wire.origin import origin_of
from shared.infrastructure.http.wire.pool import Pool
from shared.infrastructure.http.wire.request import Body
from shared.infrastructure.resilience import MONOTONIC, Clock

_POOL = ConnectionPoolConfig()


class PooledTransport:
    """HTTP/1.1 and HTTP/2 on the SDK's own connections; use `WireTransport`.

    It is for one event loop. Time limits are those of the request (`timeout`); an error is one of
    `shared.infrastructure.http.errors` and of the HTTP library alike. Proxies are left to the
    library's own transport, and so are the extensions `sni_hostname`, `trace` and `network_stream`.

    Args:
        pool: Bounds of the connection pool.
        tls: Context for https; None is the library's own: httpx trusts the authorities of certifi,
            httpx2 those of the system. Its ALPN protocols are set.
        http2: Speak HTTP/2 with a service that does: its requests share one connection.
        uds: Path of a Unix socket to connect to instead of the host.
        check_address: Called with each IP address a host resolves to, before any of them is
            connected to; what it raises ends the request. A guard against requests to addresses
            that are none of the caller's business.
        max_header_size: Bytes the head of an answer may have; 65,536; at least 1.
        clock: Source of monotonic time.

    Raises:
        UpstreamError: The exchange failed.
        ConfigurationError: The transport is closed, or has connections of another event loop.
    """

    library: ClassVar[HTTPLibrary] = HTTPX

    def __init__(
        self,
        pool: ConnectionPoolConfig = _POOL,
        *,
        tls: ssl.SSLContext | None = None,
        http2: bool = False,
        uds: str | None = None,
        check_address: Callable[[str], None] | None = None,
        max_header_size: int = 64 * 1024,
        clock: Clock = MONOTONIC,
    ) -> None:
        connector = Connector(
            lambda: tls or self.library.default_tls(),
            uds=uds,
            check_address=check_address,
            alpn=EITHER if http2 else HTTP1,
            clock=clock,
        )
        self._pool = Pool(
            pool, connector, max_header_size=max_header_size, http2=http2, clock=clock
        )
        self._stream = self.library.stream_class(_Stream)

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request and return once the head of its answer is there."""
        url, stream = request.url, request.stream
        limits = request.extensions.get("timeout", {})
        library = self.library
        try:
            if url.scheme not in {"http", "https"}:
                raise LocalProtocolViolationError("the URL is neither http nor https")
            exchange = await self._pool.send(
                origin_of(url.scheme, url.raw_host.decode("ascii"), url.port),
                request.method.encode("ascii"),
                url.raw_path,
                request.headers.raw,
                # Not `request.content`: a request that follows a redirect has none.
                b"".join(stream)
                if isinstance(stream, library.byte_stream)
                else cast("Body", stream),
                limits,
            )
        except UpstreamError as exc:
            library.fail(exc, request)
        answer = exchange.answer
        patience = limits.get("read")
        if not request.extensions.get(BUFFERED):
            patience = request.extensions.get(PATIENCE, patience)
        return library.response(
            answer.status,
            headers=answer.headers,
            stream=self._stream(ReceivedBody(exchange, patience), request, library),
            extensions={"http_version": answer.http_version, "reason_phrase": answer.reason},
        )

    def stats(self) -> dict[str, int]:
        """Return what there is of connections, and what was done with them.

        Keys: `open`, `idle` and `connecting` connections, requests `waiting` for one, and the
        totals `requests` and `reused`, the requests that found a connection open.
        """
        return self._pool.stats()

    async def aclose(self) -> None:
        """Close every connection; exchanges under way fail, and so do waiting requests."""
        await self._pool.aclose()


class _Stream:
    def __init__(self, body: ReceivedBody, request: Any, library: HTTPLibrary) -> None:
        self._body = body
        self._request = request
        self._library = library

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = self._body
        try:
            while chunk := body.take() or await body.more():
                yield chunk
        except UpstreamError as exc:
            self._library.fail(exc, self._request)

    async def aclose(self) -> None:
        self._body.close()
