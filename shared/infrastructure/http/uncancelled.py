"""Keep cancellation out of httpcore 1.x, whose pool would lose the slot for ever.

A cancelled caller leaves at once; the step it had begun ends by itself, within its own time limits
or because the connection is closed under it, and what it brings is given back. See encode/httpcore
issue 1093. httpx2 is free of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar, cast

import httpx

from shared.infrastructure.http.extensions import BUFFERED, ON_PIECE

T = TypeVar("T")


def uncancelled(transport: Any, max_buffered: int | None = None) -> Any:
    """Return a transport that is safe to cancel: `transport`, or one around it."""
    if isinstance(transport, httpx.AsyncHTTPTransport):
        return UncancelledTransport(transport, max_buffered)
    return transport


class Steps:
    """Runs steps to their end whatever becomes of their caller, and owns those left behind."""

    def __init__(self) -> None:
        self._abandoned: set[asyncio.Future[Any]] = set()
        self._orphans: set[asyncio.Task[None]] = set()

    async def run(self, step: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[None]]) -> T:
        """Await `step`; if the caller is cancelled meanwhile, apply `undo` to its late result."""
        task = asyncio.ensure_future(step)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._abandoned.add(task)
            orphan = asyncio.ensure_future(self._outlive(task, undo))
            self._orphans.add(orphan)
            orphan.add_done_callback(self._orphans.discard)
            raise

    def is_abandoned(self) -> bool:
        """Whether nobody waits any more for the step that asks."""
        return asyncio.current_task() in self._abandoned

    async def aclose(self) -> None:
        """End the steps that still run without a caller."""
        for orphan in list(self._orphans):
            orphan.cancel()
        await asyncio.gather(*self._orphans, return_exceptions=True)

    async def _outlive(self, task: asyncio.Future[T], undo: Callable[[T], Awaitable[None]]) -> None:
        # Nobody is left to hear how it went.
        try:
            with contextlib.suppress(Exception):
                await undo(await task)
        finally:
            self._abandoned.discard(task)


class UncancelledTransport(httpx.AsyncBaseTransport):
    """A transport whose exchanges, and the reads of their bodies, are never cancelled half-way.

    Args:
        inner: The transport of httpx.
        max_buffered: Bytes after which no more is read of a body that is wanted whole; None reads
            them all.
    """

    def __init__(self, inner: httpx.AsyncHTTPTransport, max_buffered: int | None) -> None:
        self.inner = inner
        # What a coding adds to a body that it cannot shorten is within that.
        self._max_buffered = math.inf if max_buffered is None else 1.01 * max_buffered + 2**16
        self._steps = Steps()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.extensions.get(BUFFERED) is True:
            # One step, and not one for each piece of the body: every step is a task.
            return await self._steps.run(self._whole(request), httpx.Response.aclose)
        response = await self._steps.run(self._exchange(request), httpx.Response.aclose)
        response.stream = _UncancelledBody(_body_of(response), self._steps)
        return response

    async def aclose(self) -> None:
        # Closing the pool ends most of what is still running.
        await self.inner.aclose()
        await self._steps.aclose()

    async def _exchange(self, request: httpx.Request) -> httpx.Response:
        return await self.inner.handle_async_request(request)

    async def _whole(self, request: httpx.Request) -> httpx.Response:
        response = await self.inner.handle_async_request(request)
        body, chunks, size = _body_of(response), list[bytes](), 0
        tell = request.extensions.get(ON_PIECE)
        try:
            async for chunk in body:
                chunks.append(chunk)
                size += len(chunk)
                if tell is not None:
                    tell(chunk)
                if size > self._max_buffered or self._steps.is_abandoned():
                    break
        finally:
            await body.aclose()
        response.stream = _Chunks(chunks)
        return response


class _Chunks(httpx.AsyncByteStream):
    def __init__(self, chunks: Sequence[bytes]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


class _UncancelledBody(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, steps: Steps) -> None:
        self._inner = inner
        self._steps = steps

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._inner)
        while (chunk := await self._steps.run(_next(chunks), self._too_late)) is not None:
            yield chunk

    async def aclose(self) -> None:
        await self._steps.run(self._inner.aclose(), _nothing)

    async def _too_late(self, _chunk: bytes | None) -> None:
        await self._inner.aclose()


def _body_of(response: httpx.Response) -> httpx.AsyncByteStream:
    return cast("httpx.AsyncByteStream", response.stream)


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


async def _nothing(_result: None) -> None:
    return None
