"""Single flight: callers who ask for the same thing at the same time share one computation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextvars import copy_context
from typing import Any, Generic, TypeVar

from shared.infrastructure.resilience.events import (
    NO_LISTENERS,
    FlightJoined,
    Listeners,
    call_listener,
)
from shared.infrastructure.resilience.trace import Trace

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """One computation a key at a time, for all who wait for it.

    A computation belongs to this object and not to the caller who came first: it goes on for as
    long as anybody waits, and is cancelled when the last one leaves. It runs in the context this
    object was made in, so that the deadline of one caller does not cut short the others. Nothing
    is kept: whoever comes after the end starts anew. For use within one event loop.

    A caller that traces its call gets what the computation decides while the caller waits for it.

    Args:
        name: Used in events.
        listeners: Told of every caller that joins a computation under way.
    """

    def __init__(self, name: str = "flight", *, listeners: Listeners = NO_LISTENERS) -> None:
        self._name = name
        self._listeners = listeners
        self._started = self._joined = 0
        self._flights: dict[K, _Flight[T]] = {}
        # The event loop keeps no strong reference to a task, not even while it is cancelled.
        self._tasks: set[asyncio.Task[T]] = set()
        self._context = copy_context()

    def __len__(self) -> int:
        """Return the number of keys being computed."""
        return len(self._flights)

    def snapshot(self) -> dict[str, Any]:
        """Return counters as plain JSON types."""
        return {
            "in_flight": len(self._flights),
            "started_count": self._started,
            "joined_count": self._joined,
        }

    async def do(self, key: K, factory: Callable[[], Awaitable[T]]) -> T:
        """Return what `factory` computes, or what one that is under way for `key` will.

        All waiters get the very same object.

        Raises:
            Exception: Whatever the computation raises; all who wait for it get it.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._take_off(key, factory)
        else:
            self._joined += 1
            self._listeners(FlightJoined(self._name, flight.waiters + 1))
        flight.waiters += 1
        tracing = call_listener.get()
        if tracing is not None:
            flight.trace.pass_on(tracing)
        try:
            await asyncio.wait((flight.task,))
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                self._forget(key, flight)
                flight.task.cancel()
        return flight.task.result()

    def _take_off(self, key: K, factory: Callable[[], Awaitable[T]]) -> _Flight[T]:
        flight = _Flight[T]()

        async def compute() -> T:
            try:
                return await factory()
            finally:
                self._forget(key, flight)
                flight.trace.end()

        self._flights[key] = flight
        self._started += 1
        context = self._context.copy()
        context.run(call_listener.set, flight.trace)
        flight.task = asyncio.get_running_loop().create_task(compute(), context=context)
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._landed)
        return flight

    def _forget(self, key: K, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _landed(self, task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # read, since nobody may be left to read it


class _Flight(Generic[T]):
    """A computation under way, and how many wait for it."""

    task: asyncio.Task[T]

    def __init__(self) -> None:
        self.waiters = 0
        self.trace = Trace()
