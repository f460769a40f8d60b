"""Bulkhead: bound the calls in flight, so that one slow service cannot sink everything."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, Field

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import BulkheadFullError, ConfigurationError
from shared.infrastructure.resilience.events import NO_LISTENERS, BulkheadResized, Listeners
from shared.infrastructure.resilience.layer import Inner, Layer, Position, Req, Res, Verdict
from shared.infrastructure.resilience.line_events import LineEvents
from shared.infrastructure.resilience.timeout import within_deadline
from shared.infrastructure.resilience.wait_queue import WaitQueue


class BulkheadConfig(BaseModel, frozen=True, extra="forbid"):
    """How many calls may be in flight and in line.

    Attributes:
        max_concurrent: Calls in flight at the same time; at least 1; no default.
        max_queue: Calls that may wait for a slot; None (default) is no bound; at least 0.
        max_wait: Seconds a call may wait for a slot; None (default) waits as long as the caller's
            deadline allows.
    """

    max_concurrent: int = Field(ge=1)
    max_queue: int | None = Field(default=None, ge=0)
    max_wait: float | None = Field(default=None, ge=0)

    def build(
        self,
        *,
        clock: Clock = MONOTONIC,
        name: str = "service",
        listeners: Listeners = NO_LISTENERS,
    ) -> Bulkhead:
        """Return the bulkhead this config describes."""
        return Bulkhead(self, clock=clock, name=name, listeners=listeners)


class Bulkhead:
    """Slots for calls in flight, served in order of arrival.

    Args:
        config: Bounds.
        clock: Source of monotonic time.
        name: Service, used in events.
        listeners: Told of every change of the limit, and of calls that wait or are refused.

    Attributes:
        clock: As given.
        name: As given.
        listeners: As given.
        limit: Calls that may be in flight now.
        in_flight: Calls that are.
    """

    def __init__(
        self,
        config: BulkheadConfig,
        *,
        clock: Clock = MONOTONIC,
        name: str = "service",
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self.config = config
        self.clock = clock
        self.name = name
        self.listeners = listeners
        self.limit = config.max_concurrent
        self.in_flight = 0
        self._refused = 0
        self._queue = WaitQueue(self._take, self._give_back, clock)

    def try_acquire(self) -> bool:
        """Take a slot if one is free and nobody waits for it; never wait."""
        if self._queue or self.in_flight >= self.limit:
            return False
        self.in_flight += 1
        return True

    async def acquire(self, *, max_wait: float | None = None) -> None:
        """Take a slot, waiting in line if need be; give it back with `release`.

        Raises:
            BulkheadFullError: The line is full, or no slot came free within `max_wait` seconds.
        """
        if self.try_acquire():
            return
        max_queue = self.config.max_queue
        line_is_full = max_queue is not None and len(self._queue) >= max_queue
        if line_is_full or not await self._queue.join(1.0, max_wait):
            self._refused += 1
            raise BulkheadFullError(
                f"no slot free: {self.in_flight} calls in flight, {len(self._queue)} waiting"
            )

    def release(self) -> None:
        """Give a slot back; the longest waiting call takes it over."""
        self.in_flight -= 1
        self._queue.pump()

    def resize(self, limit: int) -> None:
        """Change how many calls may be in flight.

        More slots go to the line at once. With fewer than there are calls in flight nobody is
        disturbed, and nobody admitted until enough of them have ended.

        Raises:
            ConfigurationError: `limit` is below 1.
        """
        if limit < 1:
            raise ConfigurationError(f"a bulkhead needs at least 1 slot, not {limit}")
        if limit != self.limit:
            self.listeners(BulkheadResized(self.name, self.limit, limit))
        self.limit = limit
        self._queue.pump()

    def layer(self) -> Layer[Any, Any]:
        """Return the layer that holds a slot of this bulkhead for each call."""
        return BulkheadLayer(self)

    def snapshot(self) -> dict[str, Any]:
        """Return occupancy and counters as plain JSON types."""
        return {
            "in_flight": self.in_flight,
            "max_concurrent": self.limit,
            "waiting": len(self._queue),
            "refused_count": self._refused,
        }

    def _take(self, _cost: float) -> float:
        if self.in_flight >= self.limit:
            return math.inf
        self.in_flight += 1
        return 0.0

    def _give_back(self, _cost: float) -> None:
        self.release()


@Position.SLOT
class BulkheadLayer:
    """Hold a slot until the answer is over.

    Position: below the rate limiter, so that no slot is held while waiting for a permit; above the
    breaker's permit, so that no half-open probe waits here.

    Args:
        bulkhead: Shared by all who may overload the same service.
    """

    def __init__(self, bulkhead: Bulkhead) -> None:
        self._bulkhead = bulkhead
        self._line = LineEvents(bulkhead.name, "bulkhead", bulkhead.listeners, bulkhead.clock)

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        bulkhead = self._bulkhead
        if not bulkhead.try_acquire():
            max_wait = within_deadline(bulkhead.config.max_wait)
            await self._line.tell(bulkhead.acquire(max_wait=max_wait))
        try:
            response = await inner.send(request)
        except BaseException:
            bulkhead.release()
            raise
        return inner.semantics.watch(response, self._over)

    def _over(self, _verdict: Verdict) -> None:
        self._bulkhead.release()
