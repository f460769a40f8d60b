"""The layers of a stack, driven by a thread: no event loop, one lock.

What layers decide takes microseconds and happens under the lock. Whenever one of them wants
something that takes time (to sleep, to stand in line, to make the call) it awaits an `Outside`;
the thread then lets go of the lock, does that, and comes back with what came of it.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import warnings
from collections.abc import Awaitable, Callable, Generator
from typing import Generic, TypeVar

from shared.infrastructure.resilience.blocking.clock import BlockingClock, ThreadEvent
from shared.infrastructure.resilience.clock import TimerHandle
from shared.infrastructure.resilience.errors import ConfigurationError

T = TypeVar("T")


class Outside(Generic[T]):
    """Something a thread does without the lock; `await` returns what it returned.

    Args:
        do: What to do; None stands for the body of a `with` block.
    """

    __slots__ = ("do", "result")
    result: T

    def __init__(self, do: Callable[[], T] | None) -> None:
        self.do = do

    def __await__(self) -> Generator[Outside[T], None, T]:
        yield self
        return self.result


class Course(Generic[T]):
    """One call on its way through the layers, in the thread that makes it.

    Args:
        call: The layers, entered with a request.
        lock: Held while they decide.

    Attributes:
        result: What the call returned, once it is over.
    """

    result: T

    def __init__(self, call: Awaitable[T], lock: threading.RLock) -> None:
        self._steps = call.__await__()
        self._lock = lock

    def go_on(self, error: BaseException | None = None) -> None:
        """Go on to the end, or to the body of the `with` block.

        Args:
            error: What the body raised.

        Raises:
            BaseException: What comes out of the layers.
        """
        try:
            while True:
                with self._lock:
                    outside: Outside[object] = (
                        self._steps.send(None) if error is None else self._steps.throw(error)
                    )
                if outside.do is None:
                    outside.result = None
                    return
                error = None
                try:
                    outside.result = outside.do()
                except BaseException as exc:  # thrown into the layers, which raise it again
                    error = exc
        except StopIteration as end:
            self.result = end.value
        except BaseException:
            # An interrupt may come between two steps: what the layers hold goes back all the same.
            with self._lock:
                self._steps.close()
            raise
        finally:
            error = None  # its traceback holds this frame


class LayerClock:
    """The `Clock` of layers that threads drive.

    Args:
        clock: Source of time.
    """

    def __init__(self, clock: BlockingClock) -> None:
        self.now = clock.now
        self.event = clock.event

    async def sleep(self, seconds: float) -> None:
        await self.wait(self.event(), seconds)

    async def wait(self, event: ThreadEvent, seconds: float) -> None:
        """Block the thread until `event` is set or `seconds` have passed."""
        warn_of_event_loop()
        await Outside(functools.partial(event.wait, seconds))

    def call_later(self, seconds: float, callback: Callable[[], None]) -> TimerHandle:
        raise ConfigurationError("a thread has no timers: use the asyncio layer in a task instead")


def warn_of_event_loop() -> None:
    """Warn if this thread runs an event loop, which a wait would hold up."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    warnings.warn(
        "a blocking wait holds up the event loop of its thread: use the asyncio layers there, or "
        "call from a thread of its own (asyncio.to_thread)",
        RuntimeWarning,
        stacklevel=2,
    )
