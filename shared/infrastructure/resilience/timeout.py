"""Time limits: a deadline over a whole call, and a limit on each attempt.

The deadline in force travels with the task; everything that would wait longer than what is left
of it fails at once instead.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, Token
from types import TracebackType

from shared.infrastructure.resilience.clock import MONOTONIC, Clock, TimerHandle
from shared.infrastructure.resilience.errors import (
    AttemptTimeoutError,
    ConfigurationError,
    DeadlineExceededError,
    ServiceError,
)
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res


class _TimeLimit:
    """Cancel the task in this block after `seconds`, and turn only that cancellation into `error`.

    The protocol is that of `asyncio.timeout`, on the injected clock.
    """

    def __init__(self, seconds: float, error: type[ServiceError], what: str, clock: Clock) -> None:
        if seconds <= 0:
            raise ConfigurationError(f"a time limit must be above 0 seconds, not {seconds}")
        self._seconds = seconds
        self._error = error
        self._what = what
        self._clock = clock
        self._expired = False
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
        if not self._expired or self._task is None:
            return
        ours_alone = self._task.uncancel() <= self._cancelling
        if ours_alone and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise self._error(f"{self._what} took longer than {self._seconds:g} s") from exc

    def _expire(self) -> None:
        self._expired = True
        if self._task is not None:
            self._task.cancel()


_deadline: ContextVar[tuple[Clock, float] | None] = ContextVar("deadline", default=None)


def remaining_time() -> float | None:
    """Return the seconds left of the deadline in force, or None if there is none."""
    current = _deadline.get()
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


class deadline:  # noqa: N801 - a context manager, named like `asyncio.timeout`
    """Bound everything inside an `async with` block, calls of this SDK included.

    A nested deadline can only shorten the one in force.

    Args:
        seconds: Time allowed from here on.
        clock: Source of monotonic time.

    Raises:
        DeadlineExceededError: The time is up before the block ends.
    """

    def __init__(self, seconds: float, *, clock: Clock = MONOTONIC) -> None:
        self._clock = clock
        self._seconds = seconds
        self._limit = _TimeLimit(seconds, DeadlineExceededError, "the call", clock)
        self._token: Token[tuple[Clock, float] | None] | None = None

    async def __aenter__(self) -> None:
        current = _deadline.get()
        at = self._clock.now() + self._seconds
        if current is None or at < current[1]:
            self._token = _deadline.set((self._clock, at))
        self._limit.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            _deadline.reset(self._token)
        self._limit.__exit__(kind, exc, traceback)


@Position.CALL
class DeadlineLayer:
    """Bound a whole call: queueing, every attempt and the waits between them.

    Position: above retry, since it is about the caller's patience and not about one attempt. A
    streamed body that is read after the call returned is outside of it.
    """

    def __init__(self, seconds: float, *, clock: Clock = MONOTONIC) -> None:
        self._seconds = seconds
        self._clock = clock

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        async with deadline(self._seconds, clock=self._clock):
            return await inner.send(request)


@Position.ATTEMPT
class AttemptTimeoutLayer:
    """Bound one attempt.

    Position: innermost, so that retry may try again and the breaker sees the failure.
    """

    def __init__(self, seconds: float, *, clock: Clock = MONOTONIC) -> None:
        self._seconds = seconds
        self._clock = clock

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        with _TimeLimit(self._seconds, AttemptTimeoutError, "the attempt", self._clock):
            return await inner.send(request)
