"""What layers tell of a call that stands in line: how long it did, or that it was refused."""

from __future__ import annotations

from collections.abc import Awaitable

from shared.infrastructure.resilience.clock import Clock
from shared.infrastructure.resilience.errors import CallRefusedError
from shared.infrastructure.resilience.events import CallQueued, CallRefused, Listeners


class LineEvents:
    """Tells of the waits in one line.

    Args:
        name: Service, used in events.
        behind: What the line is for: "rate limiter", "bulkhead".
        listeners: Told of each wait and each refusal.
        clock: Source of monotonic time.
    """

    def __init__(self, name: str, behind: str, listeners: Listeners, clock: Clock) -> None:
        self._name = name
        self._behind = behind
        self._listeners = listeners
        self._clock = clock

    async def tell(self, wait: Awaitable[None]) -> None:
        """Wait, and tell how it ended; a cancelled wait is nobody's news."""
        began = self._clock.now()
        try:
            await wait
        except CallRefusedError as exc:
            if self._listeners.has_audience:
                self._listeners(CallRefused(self._name, exc.code, exc.retry_after))
            raise
        if self._listeners.has_audience:
            waited = self._clock.now() - began
            self._listeners(CallQueued(self._name, self._behind, waited))
