"""One timer for all that a host may be too slow for."""

from __future__ import annotations

import asyncio
import math

from shared.infrastructure.balancing.errors import SilenceError, SlowStreamError
from shared.infrastructure.resilience import Clock, DeadlineExceededError, ServiceError
from shared.infrastructure.resilience.clock import TimerHandle

# How much too early a timer may go off, by rounding.
_HAIR = 1e-6
# How much too late, if nobody holds up the event loop.
_LATE = 0.05


class Watchdog:
    """Cancels the task that waits for a host, once it has waited too long.

    Time in which nobody waits does not count, the deadline excepted. A timer is set once in a
    while and looks up how things stand when it goes off: waiting and going on set none.

    Args:
        clock: Source of monotonic time.
        deadline: Instant by which everything must be over; None is none.
        host: Whom the errors are about.

    Attributes:
        waited: Seconds spent waiting, up to the last `rest`.
    """

    __slots__ = (
        *("_cancelling", "_characters", "_clock", "_deadline", "_end", "_error", "_expired"),
        *("_is_paced", "_is_waiting", "_least", "_limit", "_rate", "_seconds", "_since", "_task"),
        *("_timer", "_timer_at", "_window", "_window_end", "host", "waited"),
    )

    def __init__(
        self, clock: Clock, deadline: float | None = None, host: str | None = None
    ) -> None:
        self.host = host
        self.waited = 0.0
        self._characters = 0
        self._is_paced = False
        self._clock = clock
        self._deadline = math.inf if deadline is None else deadline
        self._seconds = self._limit = self._end = math.inf
        self._error: type[SilenceError] = SilenceError
        self._window = self._window_end = math.inf
        self._rate = self._least = 0.0
        self._since = 0.0
        self._is_waiting = False
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._timer: TimerHandle | None = None
        self._timer_at = math.inf
        self._expired: ServiceError | None = None

    def allow(self, seconds: float, error: type[SilenceError]) -> None:
        """From here on, wait no longer than `seconds`; `error` says what did not come."""
        self._seconds, self._error = seconds, error
        self._limit = self._elapsed() + seconds
        self._look_ahead()

    def hear(self, characters: int) -> None:
        """Take note of content, `characters` in all, while nobody waits; more may take as long."""
        self._characters = characters
        self._limit = self._end = self.waited + self._seconds
        if self._is_paced:
            self._look_ahead()

    def pace(self, characters_per_second: float, window: float) -> None:
        """From here on, expect so many characters in each `window` of seconds waited."""
        self._is_paced = True
        self._rate, self._window = characters_per_second, window
        self._least = self._characters + characters_per_second * window
        self._window_end = self._elapsed() + window
        self._look_ahead()

    def unpace(self) -> None:
        """Do no longer mind how slow it is."""
        self._is_paced, self._window_end = False, math.inf
        self._look_ahead()

    def wait(self) -> None:
        """Take note that the current task waits from here on.

        Raises:
            DeadlineExceededError: The deadline has passed.
        """
        now = self._since = self._clock.now()
        if now >= self._deadline:
            raise self._made(DeadlineExceededError, "the call took longer than it may")
        self._task = task = asyncio.current_task()
        self._cancelling = 0 if task is None else task.cancelling()
        self._is_waiting = True
        if now - self.waited + self._end < self._timer_at:
            self._arm()

    def rest(self) -> None:
        """Take note that the wait is over."""
        self.waited += self._clock.now() - self._since
        self._is_waiting = False

    def claim(self, exc: BaseException) -> BaseException:
        """Return the error that ended a wait: `exc`, unless the time was up."""
        error, self._expired = self._expired, None
        if error is None or self._task is None:
            return exc
        others_cancelled = self._task.uncancel() > self._cancelling
        return exc if others_cancelled else error

    def stop(self) -> None:
        """Watch no longer."""
        self._is_waiting = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, math.inf

    def _elapsed(self) -> float:
        return self.waited + (self._clock.now() - self._since if self._is_waiting else 0.0)

    def _look_ahead(self) -> None:
        self._end = min(self._limit, self._window_end) if self._is_paced else self._limit
        if self._is_waiting and self._since - self.waited + self._end < self._timer_at:
            self._arm()

    def _arm(self) -> None:
        due = min(self._since - self.waited + self._end, self._deadline)
        if due >= self._timer_at or due == math.inf:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._clock.call_later(max(0.0, due - self._clock.now()), self._ring)

    def _ring(self) -> None:
        now, due = self._clock.now(), self._timer_at
        self._timer, self._timer_at = None, math.inf
        if not self._is_waiting:
            return
        if now - due > _LATE:  # the loop stood still: what has come meanwhile is to be read first
            self._timer_at = now + _LATE
            self._timer = self._clock.call_later(_LATE, self._ring)
            return
        self._expired = self._overdue(self._clock.now())
        if self._expired is None:
            self._arm()
        elif self._task is not None:
            self._task.cancel()

    def _overdue(self, now: float) -> ServiceError | None:
        now += _HAIR
        if now >= self._deadline:
            return self._made(DeadlineExceededError, "the call took longer than it may")
        elapsed = self.waited + (now - self._since)
        if elapsed >= self._limit:
            return self._made(self._error, f"no content for {self._seconds:g} s")
        if elapsed < self._window_end:
            return None
        if self._characters < self._least:
            return self._made(
                SlowStreamError, f"fewer characters than expected within {self._window:g} s"
            )
        self.pace(self._rate, self._window)
        return None

    def _made(self, error: type[ServiceError], words: str) -> ServiceError:
        return error(words if self.host is None else f"{self.host}: {words}", host=self.host)
