"""Waiting until a host has no call in flight."""

from __future__ import annotations

import asyncio

from shared.infrastructure.resilience import Clock


class Idleness:
    """Those who wait until a host is idle.

    Args:
        clock: Source of monotonic time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiters: set[asyncio.Future[None]] = set()

    async def wait(self, timeout: float) -> None:
        """Wait for `wake`, at most `timeout` seconds."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        expiry = self._clock.call_later(timeout, lambda: _wake(waiter))
        try:
            await waiter
        finally:
            expiry.cancel()
            self._waiters.discard(waiter)

    def wake(self) -> None:
        """End the wait of all."""
        for waiter in self._waiters:
            _wake(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
