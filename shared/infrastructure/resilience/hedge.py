"""Hedging: when an answer is late, ask a second time and take whichever answer comes first.

One slow replica, one long pause of a garbage collector, one lost packet: the slowest calls are
mostly slow by accident, and the same request sent again is mostly not [Dean and Barroso, The Tail
at Scale, 2013]. Sent after the 95th percentile, hedges cost five requests in a hundred.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, Generic

from pydantic import BaseModel, Field

from shared.infrastructure.resilience.clock import MONOTONIC, Clock, TimerHandle
from shared.infrastructure.resilience.errors import AttemptTimeoutError, CallRefusedError
from shared.infrastructure.resilience.events import (
    NO_LISTENERS,
    AttemptEnded,
    BudgetSpent,
    HedgeSent,
    HedgeSettled,
    HedgeSkipped,
    Listeners,
)
from shared.infrastructure.resilience.histogram import RotatingHistogram
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res, Semantics, Verdict
from shared.infrastructure.resilience.retry_budget import RetryBudget

_log = logging.getLogger(__name__)


class HedgeConfig(BaseModel, frozen=True, extra="forbid"):
    """When a request is sent again although the first may still be answered.

    Attributes:
        delay: Seconds without an answer after which a hedge is sent, and again before each
            further one; at least 0. None (default) follows `percentile` of the latest latencies.
        max_hedges: Requests after the first; 1; at least 1.
        percentile: Share of calls that answer before a hedge would go; 0.95; between 0 and 1.
        min_samples: Latencies to be seen before the percentile is trusted; 20; at least 1. Until
            then nothing is hedged.
        window: Seconds a latency counts for, at most; at least half of them; 60; above 0.
        busy_pause: Seconds without hedges after an answer that asks for patience (HTTP 429) and
            does not say for how long; 1; at least 0.
    """

    delay: float | None = Field(default=None, ge=0)
    max_hedges: int = Field(default=1, ge=1)
    percentile: float = Field(default=0.95, gt=0, lt=1)
    min_samples: int = Field(default=20, ge=1)
    window: float = Field(default=60.0, gt=0)
    busy_pause: float = Field(default=1.0, ge=0)

    def describe(self) -> str:
        """Say the main numbers in a few words."""
        hedges = f"{self.max_hedges} hedge{'s' if self.max_hedges > 1 else ''}"
        late = f"p{self.percentile * 100:g}" if self.delay is None else f"{self.delay:g} s"
        return f"{hedges} after {late}"


class HedgePolicy:
    """Decide when a call is late and whether a hedge may go.

    Args:
        config: Delay and number of hedges.
        name: Service, used in events.
        budget: Pays for hedges, and for the retries of all who call the same origin; None is
            unlimited.
        clock: Source of monotonic time.
        listeners: Told of hedges that are paid for or skipped.

    Attributes:
        config: As given.
        name: As given.
        listeners: As given.
    """

    def __init__(
        self,
        config: HedgeConfig,
        *,
        name: str = "service",
        budget: RetryBudget | None = None,
        clock: Clock = MONOTONIC,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self.config = config
        self.name = name
        self.listeners = listeners
        self._budget = budget
        self._clock = clock
        self._latencies = RotatingHistogram(config.window, clock=clock)
        self._paused_until = -math.inf
        self._hedged = self._won = self._skipped = 0

    def delay(self) -> float | None:
        """Return the seconds after which an answer is late, None as long as that is unknown."""
        if self.config.delay is not None:
            return self.config.delay
        return self._latencies.percentile(self.config.percentile, self.config.min_samples)

    def try_hedge(self) -> bool:
        """Count and pay for one hedge, unless the service is busy or the budget is spent."""
        if self._clock.now() < self._paused_until:
            self._skipped += 1
            self.listeners(HedgeSkipped(self.name, "busy"))
            return False
        if self._budget is not None and not self._budget.try_acquire():
            self._skipped += 1
            self.listeners(HedgeSkipped(self.name, "budget"))
            return False
        if self._budget is not None:
            self.listeners(BudgetSpent(self.name, self._budget.cost(), self._budget.tokens))
        self._hedged += 1
        return True

    def refused(self) -> None:
        """Take back a hedge that was never sent."""
        self._hedged -= 1
        if self._budget is not None:
            self._budget.refund()

    def hold_off(self, seconds: float | None = None) -> None:
        """Send no hedge for `seconds`, as the service asked; None is `busy_pause`."""
        pause = self.config.busy_pause if seconds is None else seconds
        self._paused_until = max(self._paused_until, self._clock.now() + pause)

    def succeed(self, elapsed: float, *, hedge_won: bool) -> None:
        """Note a good answer, `elapsed` seconds after the first request.

        If a hedge won, that is less than what the first would have taken, and yet a fair sample:
        both lie above the delay, so the percentile the delay follows is the same.
        """
        self._latencies.record(elapsed)
        self._won += hedge_won
        if self._budget is not None:
            self._budget.succeed()

    def snapshot(self) -> dict[str, Any]:
        """Return the delay in force and the counters as plain JSON types."""
        return {
            "delay": self.delay(),
            "hedged_count": self._hedged,
            "won_count": self._won,
            "skipped_count": self._skipped,
        }


# What a request's fate is when it is late: sent, and nobody knows what became of it.
_NO_ANSWER_YET = AttemptTimeoutError("no answer yet")


@Position.REPEAT
class HedgeLayer:
    """Send a late request again, and return the first good answer.

    Position: where Retry would be, and instead of it: above everything that is per attempt, so
    that each leg takes its own permits and may go to another host.

    A failure before the delay is passed on, a failed leg waits for those still under way, and no
    leg is added once one has failed: to try again after a failure is Retry's job. If all legs
    fail, the first failure is the outcome. A hedge that we refused ourselves does not count. Legs
    that lost are cancelled; what they answer nevertheless is discarded. Requests that must not be
    sent twice are sent once. After an answer that asks for patience (HTTP 429) no hedge is sent for
    as long as it asks. A service that refuses a duplicate of a request in progress, as with a 409,
    should not be hedged.

    Args:
        config: Delay and number of hedges.
        name: Service, used in events.
        budget: Pays for hedges, and for the retries of all who call the same origin; None
            (default) is unlimited.
        clock: Source of monotonic time.
        listeners: Told of every hedge: sent, skipped, won or lost.
    """

    def __init__(
        self,
        config: HedgeConfig,
        *,
        name: str = "service",
        budget: RetryBudget | None = None,
        clock: Clock = MONOTONIC,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self._policy = HedgePolicy(
            config, name=name, budget=budget, clock=clock, listeners=listeners
        )
        self._budget = budget
        self._clock = clock
        # The event loop keeps no strong reference to a task.
        self._tasks: set[asyncio.Task[None]] = set()

    def describe(self) -> str:
        """Say the main numbers in one line."""
        line = f"HedgeLayer: {self._policy.config.describe()}"
        return f"{line}, {self._budget.describe()}" if self._budget else line

    def snapshot(self) -> dict[str, Any]:
        """Return the delay in force (s) and how many hedges were sent, have won, were skipped."""
        return self._policy.snapshot()

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        began, delay = self._clock.now(), self._policy.delay()
        if delay is None or not inner.semantics.repeatable(request, _NO_ANSWER_YET):
            response, hedge_won = await self._alone(request, inner), False
        else:
            race = _Race(request, inner, self._policy, self._spawn)
            response = await race.run(delay, self._clock)
            hedge_won = race.hedge_won
        if inner.semantics.judge(response) is Verdict.OK:
            self._policy.succeed(self._clock.now() - began, hedge_won=hedge_won)
        return response

    async def _alone(self, request: Req, inner: Inner[Req, Res]) -> Res:
        try:
            response = await inner.send(request)
        except Exception as exc:
            _heed(exc, inner.semantics, self._policy)
            raise
        _heed(response, inner.semantics, self._policy)
        return response

    def _spawn(self, leg: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(leg)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("discarding an unwanted answer failed", exc_info=error)


class _Race(Generic[Req, Res]):
    """The legs of one call, and the best outcome so far: a good answer, else the first failure."""

    def __init__(
        self,
        request: Req,
        inner: Inner[Req, Res],
        policy: HedgePolicy,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.hedge_won = False
        self._request = request
        self._inner = inner
        self._policy = policy
        self._spawn = spawn
        self._best: Res | BaseException = _NO_ANSWER_YET
        self._best_number = 0
        self._over = asyncio.Event()
        self._sent = 0
        self._under_way = 0
        self._legs: dict[int, asyncio.Task[None]] = {}
        self._timer: TimerHandle | None = None

    async def run(self, delay: float, clock: Clock) -> Res:
        """Send the first leg, and a hedge each time `delay` passes; return or raise the best."""
        self._arm(delay, clock)
        self._start()
        try:
            await self._over.wait()
        except BaseException:
            self._end()
            self._spawn(_discard(self._best, self._inner.semantics))
            raise
        if isinstance(self._best, BaseException):
            raise self._best
        return self._best

    def _arm(self, delay: float, clock: Clock) -> None:
        # A hedge belongs to the call, whoever fires the timer: it inherits the caller's deadline.
        context = copy_context()
        self._timer = clock.call_later(delay, lambda: context.run(self._hedge, delay, clock))

    def _hedge(self, delay: float, clock: Clock) -> None:
        if not self._policy.try_hedge():
            return
        self._policy.listeners(HedgeSent(self._policy.name, self._sent + 1, delay))
        if self._sent < self._policy.config.max_hedges:
            self._arm(delay, clock)
        self._start()

    def _start(self) -> None:
        number = self._sent
        self._sent += 1
        self._under_way += 1
        self._legs[number] = self._spawn(self._leg(number))

    async def _leg(self, number: int) -> None:
        outcome: Res | BaseException
        try:
            outcome = await self._inner.send(self._request)
        except BaseException as exc:
            outcome = exc  # even a cancellation: if it is not ours, the caller must not wait on
        self._under_way -= 1
        # From here on the leg cleans up, and is not to be cancelled in that.
        self._legs.pop(number, None)
        try:
            unwanted = self._offer(outcome, number)
        except BaseException as exc:  # the caller must not wait on for what cannot be read
            self._best = exc
            self._end()
            return
        await _discard(unwanted, self._inner.semantics)

    def _offer(self, outcome: Res | BaseException, number: int) -> Res | BaseException:
        """Take `outcome` if it is the best so far; return the one that nobody wants."""
        verdict = _heed(outcome, self._inner.semantics, self._policy)
        if self._over.is_set():
            return outcome
        self._tell_of_leg(outcome, verdict, number)
        self._call_off_hedges()
        good = verdict is Verdict.OK
        if number and isinstance(outcome, CallRefusedError):
            self._policy.refused()
        elif good or self._best is _NO_ANSWER_YET:
            outcome, self._best, self._best_number = self._best, outcome, number
        if good or not self._under_way:
            self.hedge_won = good and number > 0
            self._tell_of_end()
            self._end()
        return outcome

    def _tell_of_leg(self, outcome: Res | BaseException, verdict: Verdict, number: int) -> None:
        if self._sent > 1:
            name, words = self._policy.name, self._inner.semantics.describe(self._request, outcome)
            self._policy.listeners(AttemptEnded(name, number + 1, verdict.value, words))

    def _tell_of_end(self) -> None:
        if self._sent > 1:
            attempt = self._best_number + 1
            self._policy.listeners(HedgeSettled(self._policy.name, attempt, self.hedge_won))

    def _call_off_hedges(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        self._over.set()
        self._call_off_hedges()
        for leg in self._legs.values():
            leg.cancel()


async def _discard(outcome: Res | BaseException, semantics: Semantics[Any, Res]) -> None:
    if not isinstance(outcome, BaseException):
        await semantics.discard(outcome)


def _heed(outcome: object, semantics: Semantics[Any, Any], policy: HedgePolicy) -> Verdict:
    """Send no hedges for a while if the service asks for patience; return the verdict."""
    verdict = semantics.judge(outcome)
    if verdict is Verdict.BUSY:
        policy.hold_off(semantics.retry_after(outcome))
    return verdict
