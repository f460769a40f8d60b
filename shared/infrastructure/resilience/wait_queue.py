"""A first-come, first-served line in front of something scarce: permits of a rate or slots.

Nobody barges: a newcomer that finds a line joins it. Whatever the length of the line there is one
timer, that of its head. A waiter that is cancelled leaves at once and those behind it move up.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable

from shared.infrastructure.resilience.clock import Clock, TimerHandle
from shared.infrastructure.resilience.errors import ConfigurationError


class WaitQueue:
    """The line itself; what is scarce is known only by two functions of its owner.

    Args:
        take: Takes `cost` and returns 0.0 if there is enough, else returns the seconds after which
            asking again makes sense (`inf`: only `pump` can tell) and takes nothing.
        give_back: Returns `cost` that was taken for a waiter who no longer wants it, and pumps.
        clock: Source of time.

    Attributes:
        line: Cost of each waiter, the head first; empty if nobody waits.
        queued_cost: Their sum.
    """

    __slots__ = ("_clock", "_due", "_give_back", "_take", "_timer", "line", "queued_cost")

    def __init__(
        self, take: Callable[[float], float], give_back: Callable[[float], None], clock: Clock
    ) -> None:
        self._take = take
        self._give_back = give_back
        self._clock = clock
        self.line: OrderedDict[asyncio.Future[bool], float] = OrderedDict()
        self._timer: TimerHandle | None = None
        self._due = math.inf
        self.queued_cost = 0.0

    def __len__(self) -> int:
        return len(self.line)

    async def join(self, cost: float, max_wait: float | None) -> bool:
        """Wait in line until `cost` is taken; return False if `max_wait` seconds pass first.

        Raises:
            ConfigurationError: Tasks of another event loop wait in it.
        """
        loop = asyncio.get_running_loop()
        if (
            self.line
            and loop is not (other := next(iter(self.line)).get_loop())
            and other.is_running()
        ):
            raise ConfigurationError(
                "this line is in use by another event loop: give each loop its own"
            )
        future: asyncio.Future[bool] = loop.create_future()
        self.line[future] = cost
        self.queued_cost += cost
        # A loop too busy with newcomers to come round to its timers must not cost the line time.
        if len(self.line) == 1 or self._clock.now() >= self._due:
            self.pump()
        expiry = None
        if max_wait is not None and not future.done():
            expiry = self._clock.call_later(max_wait, lambda: self._leave(future))
        try:
            return await future
        except BaseException:
            # The permit may have been handed over in the very tick the waiter was cancelled.
            if future.done() and not future.cancelled() and future.result():
                self._give_back(cost)
            raise
        finally:
            if expiry is not None:
                expiry.cancel()
            self._leave(future)

    def pump(self) -> None:
        """Serve the line from its head for as long as there is enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._due = math.inf
        while self.line:
            future, cost = next(iter(self.line.items()))
            delay = 0.0 if future.done() else self._take(cost)
            if delay > 0.0:
                if delay < math.inf:
                    self._due = self._clock.now() + delay
                    self._timer = self._clock.call_later(delay, self.pump)
                return
            self._remove(future)
            if not future.done():
                future.set_result(True)

    def _leave(self, future: asyncio.Future[bool]) -> None:
        if future not in self.line:
            return
        was_head = next(iter(self.line)) is future
        self._remove(future)
        if not future.done():
            future.set_result(False)
        if was_head:
            self.pump()

    def _remove(self, future: asyncio.Future[bool]) -> None:
        self.queued_cost -= self.line.pop(future)
