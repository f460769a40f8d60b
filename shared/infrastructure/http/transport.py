"""Floor three for httpx: a transport that hosts a stack of layers, under any SDK built on httpx."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import httpx

from shared.infrastructure.http import errors
from shared.infrastructure.http.errors import UpstreamError
from shared.infrastructure.http.semantics import HTTP
from shared.infrastructure.http.uncancelled import UncancelledTransport
from shared.infrastructure.resilience import Layer, Semantics, Send, Verdict, stack
from shared.infrastructure.resilience.layer import Settle
from shared.infrastructure.resilience.timeout import within_deadline

HTTPXLayer = Layer[httpx.Request, httpx.Response]
HTTPXSemantics = Semantics[httpx.Request, httpx.Response]

BUFFERED = "buffered"
"""Request extension: read the body inside the attempt, so that its failure is the attempt's."""


class ResilientTransport(httpx.AsyncBaseTransport):
    """An httpx transport whose every request passes through a stack of layers.

    Args:
        inner: Transport that does the exchange; closed with this one.
        layers: Outermost first.
        semantics: How the layers read requests and outcomes.
    """

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        *layers: HTTPXLayer,
        semantics: HTTPXSemantics = HTTP,
    ) -> None:
        self.wire = Wire(inner, semantics)
        self._send: Send[httpx.Request, httpx.Response] = stack(
            self.wire, *layers, semantics=semantics
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._send(request)

    async def aclose(self) -> None:
        await self.wire.aclose()


class Wire:
    """The innermost `Send`: one exchange, its errors typed, its body watched.

    The request's own time limits are cut down to what is left of the deadline in force.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, semantics: HTTPXSemantics) -> None:
        native = isinstance(transport, httpx.AsyncHTTPTransport)
        self._transport = UncancelledTransport(transport) if native else transport
        self._semantics = semantics

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        _apply_deadline(request)
        try:
            response = await self._transport.handle_async_request(request)
        except UpstreamError:  # a transport of ours has typed it
            raise
        except httpx.TransportError as exc:
            raise typed_error(exc, request) from exc
        if response.is_closed:  # its body came with it, as from a cache or a mock
            return response
        stream = cast("httpx.AsyncByteStream", response.stream)
        body = WatchedStream(stream, request, self._semantics, self._semantics.judge(response))
        if not request.extensions.get(BUFFERED):
            response.stream = body
            return response
        try:
            content = b"".join([chunk async for chunk in body])
        finally:
            await body.aclose()
        response.stream = httpx.ByteStream(content)
        return response

    async def aclose(self) -> None:
        await self._transport.aclose()


class WatchedStream(httpx.AsyncByteStream):
    """A response body that tells whoever asked, once, how the exchange really ended."""

    def __init__(
        self,
        inner: httpx.AsyncByteStream,
        request: httpx.Request,
        semantics: HTTPXSemantics,
        verdict: Verdict,
    ) -> None:
        self._inner = inner
        self._request = request
        self._semantics = semantics
        self._verdict = verdict
        self._is_over = False
        self._watchers: list[Settle] = []

    def on_over(self, settle: Settle) -> None:
        """Call `settle` with the final verdict when the body is over; at once if it is."""
        if self._is_over:
            settle(self._verdict)
        else:
            self._watchers.append(settle)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._inner:
                yield chunk
        except Exception as exc:
            if isinstance(exc, UpstreamError) or not isinstance(exc, httpx.TransportError):
                self._end(self._semantics.judge(exc))
                raise
            error = typed_error(exc, self._request)
            self._end(self._semantics.judge(error))
            raise error from exc
        except asyncio.CancelledError:
            self._end(Verdict.VOID)
            raise
        self._end(self._verdict)

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            # A reader who stops early has had all it wanted.
            self._end(self._verdict)

    def _end(self, verdict: Verdict) -> None:
        if self._is_over:
            return
        self._is_over, self._verdict = True, verdict
        watchers, self._watchers = self._watchers, []
        for settle in watchers:
            settle(verdict)


def dual(error: type[UpstreamError], library: type[httpx.TransportError]) -> type[UpstreamError]:
    """Return `error` as a class that `except library` catches too."""
    return cast("type[UpstreamError]", type(error.__name__, (error, library), {}))


_DUALS: dict[type[Exception], type[UpstreamError]] = {
    library: dual(error, library)
    for library, error in {
        httpx.ConnectError: errors.ConnectFailedError,
        httpx.ConnectTimeout: errors.ConnectTimeoutError,
        httpx.PoolTimeout: errors.PoolTimeoutError,
        httpx.ProxyError: errors.ProxyFailedError,
        httpx.WriteError: errors.WriteFailedError,
        httpx.WriteTimeout: errors.WriteTimeoutError,
        httpx.ReadError: errors.ReadFailedError,
        httpx.CloseError: errors.ReadFailedError,
        httpx.ReadTimeout: errors.ReadTimeoutError,
        httpx.RemoteProtocolError: errors.RemoteProtocolViolationError,
        httpx.LocalProtocolError: errors.LocalProtocolViolationError,
        httpx.UnsupportedProtocol: errors.LocalProtocolViolationError,
        httpx.TransportError: errors.UpstreamError,
    }.items()
}


def typed_error(exc: httpx.TransportError, request: httpx.Request) -> UpstreamError:
    """Return the error of our tree for one of httpx, naming the host; it is both."""
    error = next(_DUALS[kind] for kind in type(exc).__mro__ if kind in _DUALS)
    # httpx often leaves the text empty; the class of the cause is then all there is to say.
    return for_request(error, str(exc) or type(exc).__name__, request)


def for_request(error: type[UpstreamError], reason: str, request: httpx.Request) -> UpstreamError:
    """Return an `error` of the exchange that `request` asked for."""
    host = request.url.netloc.decode("ascii")
    typed = error(f"{request.method} {host}{request.url.path}: {reason}", host=host)
    typed.attempts = 1
    if isinstance(typed, httpx.TransportError):
        typed.request = request
    return typed


def _apply_deadline(request: httpx.Request) -> None:
    limits: dict[str, float | None] = request.extensions.get("timeout", {})
    left = within_deadline(None)
    if left is not None:
        keys = ("connect", "read", "write", "pool")
        capped = {key: within_deadline(limits.get(key)) for key in keys}
        request.extensions = {**request.extensions, "timeout": capped}
