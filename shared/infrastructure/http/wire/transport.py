"""The wire for httpx: the only file here that knows httpx."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from typing import cast

import httpx

from shared.infrastructure.http import errors
from shared.infrastructure.http.config import ConnectionPoolConfig
from shared.infrastructure.http.errors import LocalProtocolViolationError, UpstreamError
from shared.infrastructure.http.transport import dual, for_request
from shared.infrastructure.http.wire.connect import Connector
from shared.infrastructure.http.wire.errors import StaleConnectionError
from shared.infrastructure.http.wire.exchange import ReceivedBody
from shared.infrastructure.http.wire.origin import origin_of
from shared.infrastructure.http.wire.pool import Pool
from shared.infrastructure.http.wire.request import Body
from shared.infrastructure.resilience import MONOTONIC, Clock

_POOL = ConnectionPoolConfig()

_DUALS: dict[type[UpstreamError], type[UpstreamError]] = {
    kind: dual(kind, library)
    for kind, library in {
        errors.ConnectFailedError: httpx.ConnectError,
        errors.ConnectTimeoutError: httpx.ConnectTimeout,
        errors.PoolTimeoutError: httpx.PoolTimeout,
        errors.WriteFailedError: httpx.WriteError,
        errors.WriteTimeoutError: httpx.WriteTimeout,
        errors.ReadFailedError: httpx.ReadError,
        errors.ReadTimeoutError: httpx.ReadTimeout,
        errors.RemoteProtocolViolationError: httpx.RemoteProtocolError,
        errors.LocalProtocolViolationError: httpx.LocalProtocolError,
        StaleConnectionError: httpx.ReadError,
    }.items()
}


class WireTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 for httpx on the SDK's own connections.

    It is for one event loop. Time limits are those of the request (`timeout`); an error is one of
    `shared.infrastructure.http.errors` and of httpx alike. HTTP/2 and proxies are left to
    `httpx.AsyncHTTPTransport`, and so are the extensions `sni_hostname`, `trace` and
    `network_stream`.

    Args:
        pool: Bounds of the connection pool.
        tls: Context for https; None is httpx's own, which trusts the authorities of certifi. Its
            ALPN protocols are set to HTTP/1.1.
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

    def __init__(
        self,
        pool: ConnectionPoolConfig = _POOL,
        *,
        tls: ssl.SSLContext | None = None,
        uds: str | None = None,
        check_address: Callable[[str], None] | None = None,
        max_header_size: int = 64 * 1024,
        clock: Clock = MONOTONIC,
    ) -> None:
        connector = Connector(
            lambda: tls or httpx.create_ssl_context(trust_env=False),
            uds=uds,
            check_address=check_address,
            clock=clock,
        )
        self._pool = Pool(pool, connector, max_header_size=max_header_size, clock=clock)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url, stream = request.url, request.stream
        limits = request.extensions.get("timeout", {})
        try:
            if url.scheme not in {"http", "https"}:
                raise LocalProtocolViolationError("the URL is neither http nor https")
            exchange = await self._pool.send(
                origin_of(url.scheme, url.raw_host.decode("ascii"), url.port),
                request.method.encode("ascii"),
                url.raw_path,
                request.headers.raw,
                request.content if isinstance(stream, httpx.ByteStream) else cast("Body", stream),
                limits,
            )
        except UpstreamError as error:
            raise _for_httpx(error, request) from error.__cause__
        answer = exchange.answer
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Stream(ReceivedBody(exchange, limits.get("read")), request),
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


class _Stream(httpx.AsyncByteStream):
    def __init__(self, body: ReceivedBody, request: httpx.Request) -> None:
        self._body = body
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = self._body
        try:
            while chunk := body.take() or await body.more():
                yield chunk
        except UpstreamError as error:
            raise _for_httpx(error, self._request) from error.__cause__

    async def aclose(self) -> None:
        self._body.close()


def _for_httpx(error: UpstreamError, request: httpx.Request) -> UpstreamError:
    return for_request(_DUALS[type(error)], str(error), request)
