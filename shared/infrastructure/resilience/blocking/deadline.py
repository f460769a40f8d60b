"""A deadline for the waits of a thread."""

from __future__ import annotations

from contextvars import Token
from types import TracebackType

from shared.infrastructure.resilience.blocking.clock import THREADS, BlockingClock
from shared.infrastructure.resilience.blocking.course import LayerClock
from shared.infrastructure.resilience.clock import Clock
from shared.infrastructure.resilience.timeout import (
    current_deadline,
    finite_limit,
    shorten_deadline,
)


class blocking_deadline:  # noqa: N801 - a context manager, named like `deadline`
    """Bound the waits inside a `with` block of this thread.

    Nothing is interrupted, for a thread cannot be. A line, or a wait between two attempts, that
    would last longer is refused or given up at once, and no attempt begins when the time is up.
    Hand `remaining_time()` to what is called as its own timeout.

    A nested deadline can only shorten the one in force. It holds for the thread it is set in;
    `asyncio.to_thread` takes that of its caller along.

    Args:
        seconds: Time allowed from here on; finite and above 0.
        clock: Source of monotonic time.

    Raises:
        ConfigurationError: `seconds` is no such number.
    """

    _token: Token[tuple[Clock, float] | None] | None

    def __init__(self, seconds: float, *, clock: BlockingClock = THREADS) -> None:
        self._seconds = finite_limit(seconds)
        self._clock = LayerClock(clock)

    def __enter__(self) -> None:
        self._token = shorten_deadline(self._seconds, self._clock)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            current_deadline.reset(self._token)
