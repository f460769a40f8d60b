"""Test kit: drive the layers by a clock that moves only when told to, against scripted outcomes."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Outcome = TypeVar("Outcome")

# How often `advance` lets other tasks run after each timer: enough for a wake-up to travel
# through a stack of layers that each need a turn of the loop.
_TURNS = 25


class FakeTimer:
    """A timer of a `FakeClock`."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Call the timer off."""
        self.callback = None


class FakeClock:
    """A `Clock` that stands still until `advance` is awaited.

    Args:
        now: Where it starts, in seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self.call_later(seconds, wake)
        try:
            await woken
        finally:
            timer.cancel()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self._timers, (self._now + max(0.0, seconds), next(self._order), timer))
        return timer

    @property
    def pending(self) -> int:
        """Timers that are set and not called off."""
        return sum(timer.callback is not None for _, _, timer in self._timers)

    def stall(self, seconds: float) -> None:
        """Let time pass as on a blocked event loop: no timer fires, no task runs."""
        self._now += seconds

    async def advance(self, seconds: float = 0.0) -> None:
        """Move time on, firing each timer at its own instant and letting tasks react to it."""
        target = self._now + seconds
        await self._settle()
        while self._timers and self._timers[0][0] <= target:
            due, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                self._now = max(self._now, due)
                timer.callback()
                await self._settle()
        self._now = target
        await self._settle()

    async def _settle(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)


class ScriptedSend(Generic[Outcome]):
    """A `Send` that plays a list of outcomes, one a call; the last one is played for ever.

    Attributes:
        requests: What it was sent, oldest first.
    """

    def __init__(self, outcomes: Sequence[Outcome | BaseException]) -> None:
        self._outcomes = list(outcomes)
        self.requests: list[object] = []

    async def __call__(self, request: object) -> Outcome:
        index = min(len(self.requests), len(self._outcomes) - 1)
        self.requests.append(request)
        outcome = self._outcomes[index]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome
