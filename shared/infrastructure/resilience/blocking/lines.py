"""Lines of threads: who stands first watches the time, everybody else sleeps until called."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from shared.infrastructure.resilience.blocking.clock import ThreadEvent
from shared.infrastructure.resilience.blocking.course import LayerClock
from shared.infrastructure.resilience.bulkhead import Bulkhead, BulkheadConfig
from shared.infrastructure.resilience.events import Listeners
from shared.infrastructure.resilience.limits import AllOf, RateLimiter
from shared.infrastructure.resilience.wait_queue import WaitQueue

# A place in a line is a future, and a future wants a loop; nothing ever runs on this one.
_NO_LOOP = asyncio.BaseEventLoop()
_NO_LOOP.close()


class ThreadQueue(WaitQueue):
    """A `WaitQueue` of threads: first come, first served, and one timed wait whatever its length.

    Args:
        take: As for `WaitQueue`.
        give_back: As for `WaitQueue`.
        clock: How to wait.
    """

    def __init__(
        self, take: Callable[[float], float], give_back: Callable[[float], None], clock: LayerClock
    ) -> None:
        super().__init__(take, give_back, clock)
        self._threads = clock
        self._events: dict[asyncio.Future[bool], ThreadEvent] = {}

    async def join(self, cost: float, max_wait: float | None) -> bool:
        clock, event = self._threads, self._threads.event()
        place: asyncio.Future[bool] = asyncio.Future(loop=_NO_LOOP)
        until = math.inf if max_wait is None else clock.now() + max_wait
        self.line[place] = cost
        self._events[place] = event
        self.queued_cost += cost
        try:
            while True:
                is_head = next(iter(self.line)) is place
                delay = self._take(cost) if is_head else math.inf
                if delay == 0.0:
                    return True
                left = until - clock.now()
                if left <= 0.0:
                    return False
                event.clear()
                await clock.wait(event, min(delay, left))
        finally:
            self._remove(place)
            del self._events[place]
            self.pump()

    def pump(self) -> None:
        """Call the head: it takes for itself."""
        for head in self.line:
            self._events[head].set()
            break


class ThreadLimiter(AllOf):
    """A limiter with a line of threads.

    Args:
        limiter: Decides; belongs to this one alone.
        clock: How to wait.
    """

    def __init__(self, limiter: RateLimiter, clock: LayerClock) -> None:
        super().__init__(limiter)
        self._queue = ThreadQueue(self._take, self.refund, clock)
        self._line = self._queue.line


class ThreadBulkhead(Bulkhead):
    """A bulkhead with a line of threads.

    Args:
        config: Bounds.
        clock: How to wait.
        name: As for `Bulkhead`.
        listeners: As for `Bulkhead`.
    """

    def __init__(
        self, config: BulkheadConfig, clock: LayerClock, *, name: str, listeners: Listeners
    ) -> None:
        super().__init__(config, clock=clock, name=name, listeners=listeners)
        self._queue = ThreadQueue(self._take, self._give_back, clock)
