"""Floor three: one exchange as the innermost `Send`, and a transport that hosts layers around it.

Written once for httpx and httpx2: see `library`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from time import perf_counter
from typing import Any, ClassVar

from shared.infrastructure.http.amend import amended, extended
from shared.infrastructure.http.decoding import (
    BodyDecoder,
    ResponseLimits,
    acceptable,
    decoded,
    decoder_for,
)
from shared.infrastructure.http.errors import UnprocessedError
from shared.infrastructure.http.extensions import (
    ANSWERS,
    BUFFERED,
    CONTENT_ENCODING,
    ON_PIECE,
    PATIENCE,
)
from shared.infrastructure.http.json_body import check_depth
from shared.infrastructure.http.layers import ForeignRetriesLayer
from shared.infrastructure.http.library import HTTPX, HTTPLibrary
from shared.infrastructure.http.semantics import HTTP
from shared.infrastructure.http.uncancelled import uncancelled
from shared.infrastructure.http.watched import Watched
from shared.infrastructure.http.wire.errors import StaleConnectionError
from shared.infrastructure.resilience import Layer, RetryLayer, Semantics, Send, Verdict, stack
from shared.infrastructure.resilience.timeout import remaining_time

HTTPLayer = Layer[Any, Any]
"""A layer around HTTP exchanges; requests and responses are those of the library in use."""

_LIMITS = ResponseLimits()
_TIMEOUTS = ("connect", "read", "write", "pool")
_BODILESS = frozenset({204, 304})
# After a restart of the service every kept connection is stale, and found so one by one.
_MAX_STALE = 3
# A connection that is going away; a service that goes on refusing needs a pause, and that is for
# retries to make.
_MAX_UNPROCESSED = 1


class Wire:
    """The innermost `Send`: one exchange, its errors typed, its body decoded, bounded and watched.

    A body that is streamed has begun when its response is returned: what goes wrong until then is
    the failure of the attempt.

    The request's own time limits are cut down to what is left of the deadline in force. A request
    that met a stale connection, or that the service says it has not processed, is sent again at
    once where that is safe: to every layer above, it is one exchange.

    Args:
        transport: Does the exchange; closed with this one.
        semantics: How outcomes are read.
        library: Whose requests and responses these are.
        limits: Bounds of a response.
        deadline_header: Name of a header that tells the service how many milliseconds are left of
            the deadline; None sends none.

    Attributes:
        transport: The transport in use.
        resent: Exchanges that were a request sent again here.
    """

    def __init__(
        self,
        transport: Any,
        semantics: Semantics[Any, Any],
        library: HTTPLibrary = HTTPX,
        *,
        limits: ResponseLimits = _LIMITS,
        deadline_header: str | None = None,
    ) -> None:
        self.transport: Any = uncancelled(transport, limits.max_bytes)
        self.resent = 0
        self._semantics = semantics
        self._library = library
        self._limits = limits
        self._deadline_header = deadline_header
        self._watched = library.stream_class(WatchedBody)

    async def __call__(self, request: Any) -> Any:
        stale, unprocessed = _MAX_STALE, _MAX_UNPROCESSED
        while True:
            try:
                return await self._exchange(request)
            except (StaleConnectionError, UnprocessedError) as exc:
                if isinstance(exc, StaleConnectionError):
                    left = stale = stale - 1
                else:
                    left = unprocessed = unprocessed - 1
                if left < 0 or not self._semantics.repeatable(request, exc):
                    raise
                self.resent += 1

    async def aclose(self) -> None:
        """Close the transport."""
        await self.transport.aclose()

    async def _exchange(self, request: Any) -> Any:
        request = self._prepared(request)
        library, began = self._library, perf_counter()
        try:
            response = await self.transport.handle_async_request(request)
        except library.failures as exc:
            library.fail(exc, request)
        if response.is_closed:  # its body came with it, as from a cache or a mock
            return response
        is_buffered = request.extensions.get(BUFFERED)
        if is_buffered == ANSWERS and response.status_code >= 400:
            is_buffered = False
        try:
            decoder = self._decoder(request, response, is_buffered)
        except library.failures as exc:
            await response.aclose()
            library.fail(exc, request)
        if is_buffered:
            library.hold(response, await self._read(request, response, decoder))
            response.elapsed = timedelta(seconds=perf_counter() - began)
            return response
        if getattr(response.stream, "is_judged", False):  # below, by those who know it better
            return response
        verdict = self._semantics.judge(response)
        body = self._watched(response.stream, decoder, request, library, self._semantics, verdict)
        if verdict is Verdict.OK:
            await body.begin()
        response.stream = body
        return response

    async def _read(self, request: Any, response: Any, decoder: BodyDecoder) -> bytes:
        body, pieces = response.stream, list[bytes]()
        tell = request.extensions.get(ON_PIECE)
        try:
            async for piece in decoded(body, decoder):
                if tell is not None:
                    tell(piece)
                pieces.append(piece)
            content = b"".join(pieces)
            if "json" in response.headers.get("content-type", ""):
                check_depth(content, self._limits.max_json_depth)
        except self._library.failures as exc:
            self._library.fail(exc, request)
        finally:
            await body.aclose()
        return content

    def _prepared(self, request: Any) -> Any:
        accepted = request.headers.get("accept-encoding")
        if (ours := acceptable(accepted)) != accepted:
            request.headers["Accept-Encoding"] = ours
        left = remaining_time()
        if left is None:
            return request
        limits = request.extensions.get("timeout", {})
        own = {key: limits.get(key) for key in _TIMEOUTS}
        cut = {key: left if s is None else min(s, left) for key, s in own.items()}
        patience = request.extensions.get(PATIENCE, own["read"])
        # A copy: its caller may send the request again, when there is more time, or none at all.
        request = extended(request, {"timeout": cut, PATIENCE: patience})
        if self._deadline_header is not None:
            request = amended(request, {self._deadline_header: str(int(left * 1000.0))})
        return request

    def _decoder(self, request: Any, response: Any, is_buffered: Any) -> BodyDecoder:
        is_streamed = not is_buffered
        if request.method == "HEAD" or response.status_code in _BODILESS:
            return decoder_for(None, self._limits, is_streamed=is_streamed)
        headers = response.headers
        coding = length = None
        for name, value in headers.raw:  # one pass; two look-ups would take longer
            if len(name) == 16 and name.lower() == b"content-encoding":
                coding = headers["content-encoding"]
            elif len(name) == 14 and name.lower() == b"content-length":
                length = value.decode("latin-1")
        decoder = decoder_for(coding, self._limits, is_streamed=is_streamed, content_length=length)
        if coding is not None:
            # As the body will be: or the library would decode it once more.
            del headers["content-encoding"]
            headers.pop("content-length", None)
            response.extensions = {**response.extensions, CONTENT_ENCODING: coding}
        return decoder


class WatchedBody(Watched):
    """A response body that tells whoever asked, once, how the exchange really ended.

    Args:
        inner: The body as it comes off the wire.
        decoder: Takes its coding away.
        request: Whose answer it is.
        library: Whose errors are understood and raised.
        semantics: How an error is read.
        verdict: What the head of the answer says about the service.
    """

    def __init__(
        self,
        inner: Any,
        decoder: BodyDecoder,
        request: Any,
        library: HTTPLibrary,
        semantics: Semantics[Any, Any],
        verdict: Verdict,
    ) -> None:
        super().__init__(verdict)
        self._inner = inner
        self._pieces = decoded(inner, decoder)
        self._first = b""
        self._request = request
        self._library = library
        self._semantics = semantics

    async def begin(self) -> None:
        """Wait for the first byte, so that what goes wrong until then is the attempt's failure."""
        try:
            async for piece in self._pieces:
                self._first = piece
                if piece:
                    return
            self._end(self._verdict)
        except BaseException as exc:
            await self.aclose()
            self._fail(exc)
            raise

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._first:
            first, self._first = self._first, b""
            yield first
        try:
            async for piece in self._pieces:
                yield piece
        except (Exception, asyncio.CancelledError) as exc:
            self._fail(exc)
            raise
        self._end(self._verdict)

    def _fail(self, exc: BaseException) -> None:
        """Settle what a failure says, and raise it as it should be, unless it is so already."""
        if not isinstance(exc, Exception):
            self._end(Verdict.VOID)
        elif isinstance(exc, self._library.failures):
            error = self._library.translated(exc, self._request)
            self._end(self._semantics.judge(error))
            raise error from error.__cause__
        else:
            self._end(self._semantics.judge(exc))

    async def aclose(self) -> None:
        """Want no more of it."""
        try:
            await self._inner.aclose()
        finally:
            # A reader who stops early has had all it wanted.
            self._end(self._verdict)


class LayeredTransport:
    """A transport whose every request passes through a stack of layers; use `ResilientTransport`.

    Args:
        inner: Transport that does the exchange; closed with this one.
        layers: Outermost first.
        semantics: How the layers read requests and outcomes.
        limits: Bounds of a response. Under a client that is not ours every body is a streamed one.
        deadline_header: Name of a header that tells the service how many milliseconds are left of
            the deadline; None sends none.
        under_sdk: Warn once if an SDK above retries as well as these layers.

    Attributes:
        wire: The innermost `Send`, below all layers.
    """

    library: ClassVar[HTTPLibrary] = HTTPX

    def __init__(
        self,
        inner: Any,
        *layers: HTTPLayer,
        semantics: Semantics[Any, Any] = HTTP,
        limits: ResponseLimits = _LIMITS,
        deadline_header: str | None = None,
        under_sdk: bool = True,
    ) -> None:
        if under_sdk and any(isinstance(layer, RetryLayer) for layer in layers):
            layers = (ForeignRetriesLayer(), *layers)
        self.wire = Wire(
            inner,
            semantics,
            self.library,
            limits=limits,
            deadline_header=deadline_header,
        )
        self._send: Send[Any, Any] = stack(self.wire, *layers, semantics=semantics)

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request through the layers, as the client above asks."""
        return await self._send(request)

    async def aclose(self) -> None:
        """Close the transport below."""
        await self.wire.aclose()
