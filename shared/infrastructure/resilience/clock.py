"""The seam through which time enters: everything that waits or measures takes a `Clock`.

Time is monotonic seconds; a step of the wall clock changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class TimerHandle(Protocol):
    """A scheduled callback that can be called off."""

    def cancel(self) -> None:
        """Call the timer off; doing so twice, or after it fired, is harmless."""
        ...


class Clock(Protocol):
    """Monotonic time and the two ways to wait for it."""

    def now(self) -> float:
        """Return monotonic seconds; only differences mean anything."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Suspend the caller for `seconds`."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], None]) -> TimerHandle:
        """Run `callback` on the event loop after `seconds`."""
        ...


class SystemClock:
    """The machine's monotonic clock and the running event loop's timers."""

    def __init__(self) -> None:
        # Bound once: `now()` is on every hot path.
        self.now = time.monotonic

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, callback)


MONOTONIC: Clock = SystemClock()
"""The default clock."""
