"""Time limits: a deadline over a whole call, and a limit on each attempt.

The deadline in force travels with the task; everything that would wait longer than what is left
of it fails at once instead.
"""

from __future__ import annotations

import asyncio
import math
from contextvars import ContextVar, Token
from types import TracebackType

from shared.infrastructure.resilience.clock import MONOTONIC, Clock, TimerHandle
from shared.infrastructure.resilience.errors import (
    AttemptTimeoutError,
    ConfigurationError,
    DeadlineExceededError,
    ServiceError,
)
from shared.infrastructure.resilience.events import (
    NO_LISTENERS,
    AttemptTimedOut,
    DeadlineExceeded,
    Listeners,
)
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res


def finite_limit(seconds: float) -> float:
    """Return `seconds` if they can limit a time.

    Raises:
        ConfigurationError: They are not a finite number above 0.
    """
    if not 0.0 < seconds < math.inf:
        raise ConfigurationError(
            f"a time limit must be a finite number of seconds above 0, not {seconds}; "
            "leave it out if there is to be none"
        )
    return seconds


class TimeLimit:
    """Cancels the task in a `with` block after `seconds`, and makes only that cancellation `error`.

    The protocol is that of `asyncio.timeout`, on the injected clock.

    Args:
        seconds: Time allowed; finite and above 0.
        error: What to raise.
        what: What took too long, for the message.
        clock: Source of monotonic time.

    Attributes:
        expired: Whether the time was up before the block ended.
    """

    __slots__ = (
        *("_cancelling", "_clock", "_error", "_seconds"),
        *("_task", "_timer", "_what", "expired"),
    )

    def __init__(self, seconds: float, error: type[ServiceError], what: str, clock: Clock) -> None:
        self._seconds = seconds
        self._error = error
        self._what = what
        self._clock = clock
        self.expired = False
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._timer: TimerHandle | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        if self._task is None:
            raise ConfigurationError("a time limit works only inside an asyncio task")
        self._cancelling = self._task.cancelling()
        self._timer = self._clock.call_later(self._seconds, self._expire)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.expired or self._task is None:
            return
        ours_alone = self._task.uncancel() <= self._cancelling
        if ours_alone and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise self._error(f"{self._what} took longer than {self._seconds:g} s") from exc

    def _expire(self) -> None:
        self.expired = True
        if self._task is not None:
            self._task.cancel()


current_deadline: ContextVar[tuple[Clock, float] | None] = ContextVar("deadline", default=None)
"""The deadline in force: an instant of a clock."""


def remaining_time() -> float | None:
    """Return the seconds left of the deadline in force, or None if there is none."""
    current = current_deadline.get()
    if current is None:
        return None
    clock, at = current
    return max(0.0, at - clock.now())


def within_deadline(seconds: float | None) -> float | None:
    """Return `seconds` (None: for ever) cut down to what is left of the deadline in force."""
    left = remaining_time()
    if left is None:
        return seconds
    return left if seconds is None else min(seconds, left)


def shorten_deadline(seconds: float, clock: Clock) -> Token[tuple[Clock, float] | None] | None:
    """Put a deadline in force, unless that in force is sooner; return how to undo it."""
    # What is left is compared, not the instants: those of two clocks have nothing in common.
    left = remaining_time()
    if left is not None and left <= seconds:
        return None
    return current_deadline.set((clock, clock.now() + seconds))


class deadline:  # noqa: N801 - a context manager, named like `asyncio.timeout`
    """Bound everything inside an `async with` block, calls of this SDK included.

    A nested deadline can only shorten the one in force.

    Args:
        seconds: Time allowed from here on; finite and above 0.
        clock: Source of monotonic time.

    Raises:
        ConfigurationError: `seconds` is no such number, or the block is not in an asyncio task.
        DeadlineExceededError: The time is up before the block ends.
    """

    def __init__(self, seconds: float, *, clock: Clock = MONOTONIC) -> None:
        self._clock = clock
        self._seconds = finite_limit(seconds)
        self._limit = TimeLimit(seconds, DeadlineExceededError, "the call", clock)
        self._token: Token[tuple[Clock, float] | None] | None = None

    @property
    def expired(self) -> bool:
        """Whether the time was up before the block ended."""
        return self._limit.expired

    async def __aenter__(self) -> None:
        self._limit.__enter__()
        self._token = shorten_deadline(self._seconds, self._clock)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            current_deadline.reset(self._token)
        self._limit.__exit__(kind, exc, traceback)


@Position.CALL
class DeadlineLayer:
    """Bound a whole call: queueing, every attempt and the waits between them.

    Position: above retry, since it is about the caller's patience and not about one attempt. A
    streamed body that is read after the call returned is outside of it.

    Args:
        seconds: Time allowed to a call; finite and above 0.
        name: Service that is called, used in events.
        clock: Source of monotonic time.
        listeners: Told when the time is up.
    """

    def __init__(
        self,
        seconds: float,
        *,
        name: str = "service",
        clock: Clock = MONOTONIC,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self._seconds = finite_limit(seconds)
        self._name = name
        self._clock = clock
        self._listeners = listeners

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        limit = deadline(self._seconds, clock=self._clock)
        try:
            async with limit:
                return await inner.send(request)
        except DeadlineExceededError:
            if limit.expired:  # and not one within
                self._listeners(DeadlineExceeded(self._name, self._seconds))
            raise


@Position.ATTEMPT
class AttemptTimeoutLayer:
    """Bound one attempt.

    Position: innermost, so that retry may try again and the breaker sees the failure.

    Args:
        seconds: Time allowed to an attempt; finite and above 0.
        name: Service that is called, used in events.
        clock: Source of monotonic time.
        listeners: Told when the time is up.
    """

    def __init__(
        self,
        seconds: float,
        *,
        name: str = "service",
        clock: Clock = MONOTONIC,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self._seconds = finite_limit(seconds)
        self._name = name
        self._clock = clock
        self._listeners = listeners

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        limit = TimeLimit(self._seconds, AttemptTimeoutError, "the attempt", self._clock)
        try:
            with limit:
                return await inner.send(request)
        except AttemptTimeoutError:
            if limit.expired:  # and not one within
                self._listeners(AttemptTimedOut(self._name, self._seconds))
            raise
