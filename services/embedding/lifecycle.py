"""Started once by whoever comes first, stopped once, and started again if wanted."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from services.embedding.errors import ServiceStoppedError


class Lifecycle:
    """Starting and stopping, safe under concurrent calls and cancellation.

    Args:
        begin: Starts everything; what it raises is told to all who wait for the start.
        finish: Stops everything; after it `begin` may be called again.

    Attributes:
        running: Whether it has started and not been told to stop.
    """

    def __init__(
        self,
        begin: Callable[[], Coroutine[Any, Any, None]],
        finish: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self.running = False
        self._begin = begin
        self._finish = finish
        self._stopped = False
        self._startup: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._turns = asyncio.Lock()

    async def start(self) -> None:
        """Start, also after a stop; a second call changes nothing."""
        async with self._turns:
            self._stopped = False
        await self.started()

    async def started(self) -> None:
        """Start, unless it was stopped on purpose.

        Raises:
            ServiceStoppedError: It was stopped.
        """
        if self.running:
            return
        if self._stopped:
            raise ServiceStoppedError("the embedding service has been stopped")
        if self._ending is not None:
            await asyncio.wait([self._ending])
        if self._startup is None:
            # A task of its own, outside of anybody's deadline: a caller who gives up starting
            # must not take the start away from the others.
            self._startup = asyncio.create_task(self._begin(), context=contextvars.Context())
            self._startup.add_done_callback(self._on_started)
        await asyncio.shield(self._startup)
        # A stop that was cancelled may have left it started, but told to stop.
        self.running = not self._stopped and self._ending is None

    async def stop(self) -> None:
        """Stop; a second call changes nothing.

        If it is cancelled, stopping goes on by itself, and gives up what it was waiting for.
        """
        async with self._turns:
            self._stopped, self.running = True, False
            if self._startup is None:
                return
            with contextlib.suppress(Exception):  # those who wait for the start are told of it
                await asyncio.shield(self._startup)
            if self._ending is None:
                self._ending = asyncio.create_task(self._end(), context=contextvars.Context())
            ending = self._ending
            try:
                await asyncio.wait([ending])
            except asyncio.CancelledError:
                ending.cancel()
                raise
            if not ending.cancelled():
                ending.result()

    async def _end(self) -> None:
        try:
            await self._finish()
        finally:
            self._startup = self._ending = None

    def _on_started(self, startup: asyncio.Task[None]) -> None:
        if startup.cancelled() or startup.exception() is not None:
            self._startup = None
        else:
            self.running = not self._stopped
