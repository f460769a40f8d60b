"""Time for threads: to wait is to block on an event until it is set, or until time has passed."""

from __future__ import annotations

import threading
import time
from typing import Protocol

# Seconds after which a main thread that waits looks for signals.
_TURN = 0.2


class ThreadEvent(Protocol):
    """What one thread waits on until another sets it; a `threading.Event` is one."""

    def set(self) -> None:
        """Let the thread that waits go on."""
        ...

    def clear(self) -> None:
        """Make the next `wait` wait again."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the event is set or `timeout` seconds have passed; return whether it is."""
        ...


class BlockingClock(Protocol):
    """Monotonic time, and the one way for a thread to wait."""

    def now(self) -> float:
        """Return monotonic seconds; only differences mean anything."""
        ...

    def event(self) -> ThreadEvent:
        """Return an event that is not set, whose timeouts go by this clock."""
        ...


class ThreadClock:
    """The machine's monotonic clock."""

    def __init__(self) -> None:
        self.now = time.monotonic

    def event(self) -> ThreadEvent:
        return _Event()


class _Event(threading.Event):
    """An event whose wait Ctrl-C ends, whenever it comes."""

    def wait(self, timeout: float | None = None) -> bool:
        longest = threading.TIMEOUT_MAX if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        if threading.current_thread() is not threading.main_thread():
            return super().wait(longest)
        # A signal that comes just before a wait begins is seen when that wait ends, and on Windows
        # any signal is: so many short waits.
        until = time.monotonic() + longest
        while not self.is_set() and (left := until - time.monotonic()) > 0.0:
            super().wait(min(left, _TURN))
        return self.is_set()


THREADS: BlockingClock = ThreadClock()
"""The default clock of everything that blocks."""
