"""Keep cancellation out of httpcore 1.x, whose pool would lose the slot for ever.

A cancelled caller leaves at once; the step it had begun ends by itself, within its own time limits
or because the connection is closed under it, and what it brings is given back. See encode/httpcore
issue 1093.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import httpx

T = TypeVar("T")


class Steps:
    """Runs steps to their end whatever becomes of their caller, and owns those left behind."""

    def __init__(self) -> None:
        self._orphans: set[asyncio.Task[None]] = set()

    async def run(self, step: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[None]]) -> T:
        """Await `step`; if the caller is cancelled meanwhile, apply `undo` to its late result."""
        task = asyncio.ensure_future(step)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            orphan = asyncio.ensure_future(_outlive(task, undo))
            self._orphans.add(orphan)
            orphan.add_done_callback(self._orphans.discard)
            raise

    async def aclose(self) -> None:
        """End the steps that still run without a caller."""
        for orphan in list(self._orphans):
            orphan.cancel()
        await asyncio.gather(*self._orphans, return_exceptions=True)


async def _outlive(task: asyncio.Future[T], undo: Callable[[T], Awaitable[None]]) -> None:
    # Nobody is left to hear how it went.
    with contextlib.suppress(Exception):
        await undo(await task)


class UncancelledTransport(httpx.AsyncBaseTransport):
    """A transport whose exchanges, and the reads of their bodies, are never cancelled half-way."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner
        self._steps = Steps()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._steps.run(self._exchange(request), httpx.Response.aclose)
        if isinstance(response.stream, httpx.AsyncByteStream) and not response.is_closed:
            response.stream = _UncancelledBody(response.stream, self._steps)
        return response

    async def aclose(self) -> None:
        # Closing the pool ends most of what is still running.
        await self.inner.aclose()
        await self._steps.aclose()

    async def _exchange(self, request: httpx.Request) -> httpx.Response:
        return await self.inner.handle_async_request(request)


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


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


async def _nothing(_result: None) -> None:
    return None
