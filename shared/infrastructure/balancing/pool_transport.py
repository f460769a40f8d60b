"""The pool as a transport of either HTTP library: what its two flavours have alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, ClassVar, Generic, Literal, TypeVar

import httpx

from shared.infrastructure.balancing.call import CallOptions, Hold
from shared.infrastructure.balancing.errors import InvalidResponseError
from shared.infrastructure.balancing.facts import facts_of
from shared.infrastructure.balancing.pool import HostPool
from shared.infrastructure.balancing.uploads import content_of
from shared.infrastructure.http.amend import extended
from shared.infrastructure.http.extensions import BUFFERED
from shared.infrastructure.http.library import THEIR_NAMES, HTTPLibrary
from shared.infrastructure.resilience import ServiceError

Buffering = Literal["error", "buffer"]
"""What becomes of a stream that breaks off: an error, or nothing, since it is held until whole."""

SESSION_HEADER = "x-session-id"
"""Names the session of a request: calls of one session go to the same host where that helps."""

THEIR_NAMES[InvalidResponseError] = "RemoteProtocolError"

_HOLD: dict[Buffering, Hold] = {"error": "first", "buffer": "whole"}
# What the SDKs of OpenAI and Anthropic go by: the pool has tried all there is to try.
_SHOULD_RETRY = "x-should-retry"

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class PoolTransport(Generic[RequestT, ResponseT]):
    """A pool of hosts as a transport.

    Its requests may name any origin: only their path counts. The time limits of a request hold
    where they are shorter than those of the pool. What it raises is an error of its library, too,
    with all that ours says: a timeout is its `ReadTimeout`, an answer that is none its
    `RemoteProtocolError`, a refusal its `ConnectError`.

    Whoever is above must not retry: `AsyncOpenAI(max_retries=0, http_client=...)`. Answers with an
    error status say so themselves, with `x-should-retry: false`.

    Args:
        pool: The hosts.
        recovery: "error" hands a stream up once its first content is there; "buffer" when it is
            whole.
        owns_pool: Whether closing it ends the pool.

    Attributes:
        pool: As given.
    """

    library: ClassVar[HTTPLibrary]

    def __init__(
        self, pool: HostPool, recovery: Buffering = "error", *, owns_pool: bool = False
    ) -> None:
        self.pool = pool
        self._hold: Hold = _HOLD[recovery]
        self._owns_pool = owns_pool
        self._body: Any = self.library.stream_class(AdoptedBody)

    async def handle_async_request(self, request: RequestT) -> ResponseT:
        """Send a request to one host after another until there is an answer."""
        try:
            if self._owns_pool:
                await self.pool.start()
            response = await self.pool.exchange(call_for(self.pool, request, self._hold))
        except ServiceError as exc:
            error = self.library.adopted(exc, request)
            raise error from error.__cause__
        if response.status_code >= 400:
            response.headers.setdefault(_SHOULD_RETRY, "false")
        if not response.is_closed:
            response.stream = self._body(response.stream, self.library, request)
        return self._answer(response)

    async def aclose(self) -> None:
        """End the pool, if it is the transport's own."""
        if self._owns_pool:
            await self.pool.stop()

    def _answer(self, response: httpx.Response) -> ResponseT:
        """Return a response as one of the library."""
        raise NotImplementedError


class AdoptedBody:
    """The body of an answer, whose errors are those of a library, too.

    Args:
        inner: The body.
        library: The library.
        request: Whose answer it is.
    """

    def __init__(self, inner: Any, library: HTTPLibrary, request: Any) -> None:
        self._inner = inner
        self._library = library
        self._request = request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # how to be told of its end, if that can be had

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._inner:
                yield piece
        except ServiceError as exc:
            error = self._library.adopted(exc, self._request)
            raise error from error.__cause__

    async def aclose(self) -> None:
        """Want no more of it."""
        await self._inner.aclose()


def call_for(pool: HostPool, request: Any, hold: Hold) -> httpx.Request:
    """Return a copy of a request as a call of its own: its sender may send it again meanwhile.

    Args:
        pool: Whose call it is.
        request: Of either library.
        hold: When a stream is handed up.
    """
    content = content_of(request.stream, request.headers)
    facts = facts_of(request.url.path, content)
    options = CallOptions(session=request.headers.get(SESSION_HEADER))
    extensions = pool.in_new_call(facts, hold, options, request.extensions)
    # What may be a live answer is handed up as it comes.
    is_plain = facts.dialect is not None and facts.payload is not None and not facts.streamed
    if is_plain and request.method == "POST":
        extensions.setdefault(BUFFERED, True)
    if isinstance(request, httpx.Request):
        own = extended(request, {})
    else:
        own = httpx.Request(
            request.method, str(request.url), headers=request.headers.raw, stream=request.stream
        )
    if content is not None:
        own.stream = httpx.ByteStream(content)
    own.extensions = extensions
    return own
