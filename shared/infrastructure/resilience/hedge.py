"""Hedging: when an answer is late, ask a second time and take whichever answer comes first.

One slow replica, one long pause of a garbage collector, one lost packet: the slowest calls are
mostly slow by accident, and the same request sent again is mostly not [Dean and Barroso, The Tail
at Scale, 2013]. Sent after the 95th percentile, hedges cost five requests in a hundred.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, Generic

from shared.infrastructure.resilience.clock import MONOTONIC, Clock, TimerHandle
from shared.infrastructure.resilience.errors import AttemptTimeoutError, CallRefusedError
from shared.infrastructure.resilience.events import (
    NO_LISTENERS,
    AttemptEnded,
    HedgeSent,
    HedgeSettled,
    Listeners,
)
from shared.infrastructure.resilience.hedge_policy import HedgeConfig, HedgePolicy
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res, Semantics, Verdict
from shared.infrastructure.resilience.retry_budget import RetryBudget

_log = logging.getLogger(__name__)


OVERTAKEN = "overtaken: a hedge sent later had its answer first"
"""Message of the `CancelledError` of a leg that was still silent when a later one had its answer:
unlike a plain one, it lets a `Semantics` that knows hosts hold that silence against the host."""

UNSENT = "unsent"
"""Attribute of the `CancelledError` of a leg that was still waiting for its turn to be sent."""

# What a request's fate is when it is late: sent, and nobody knows what became of it.
_NO_ANSWER_YET = AttemptTimeoutError("no answer yet")


@Position.REPEAT
class HedgeLayer:
    """Send a late request again, and return the first good answer.

    Position: where Retry would be, and instead of it: above everything that is per attempt, so
    that each leg takes its own permits and may go to another host.

    A failure before the delay is passed on, a failed leg waits for those still under way, and no
    leg is added once one has failed: to try again after a failure is Retry's job. If all legs
    fail, the first failure is the outcome. A hedge that was never sent, as we refused it ourselves
    or had the answer before, neither counts nor costs. Legs that lost are cancelled; what they
    answer nevertheless is discarded. Requests that must not be sent twice, or not as often, are
    not. After an answer that asks for patience (HTTP 429) no hedge is sent for
    as long as it asks, unless `may_hedge` knows better. A service that refuses a duplicate of a
    request in progress, as with a 409, should not be hedged.

    Args:
        config: Delay and number of hedges.
        name: Service, used in events.
        budget: Pays for hedges, and for the retries of all who call the same origin; None
            (default) is unlimited.
        pays_in: Whether good answers pay into the budget; False below a layer that pays in itself.
        may_hedge: Says whether there is room for a hedge of a request now; None (default) is
            whenever the service has not asked for patience.
        clock: Source of monotonic time.
        listeners: Told of every hedge: sent, skipped, won or lost.
    """

    def __init__(
        self,
        config: HedgeConfig,
        *,
        name: str = "service",
        budget: RetryBudget | None = None,
        pays_in: bool = True,
        may_hedge: Callable[[Any], bool] | None = None,
        clock: Clock = MONOTONIC,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self._policy = HedgePolicy(
            config,
            name=name,
            budget=budget,
            pays_in=pays_in,
            may_hedge=may_hedge,
            clock=clock,
            listeners=listeners,
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
        # Asked again: a further attempt may be one too many by now.
        if not self._inner.semantics.repeatable(self._request, _NO_ANSWER_YET):
            return
        if not self._policy.try_hedge(self._request):
            return
        self._policy.listeners(HedgeSent(self._policy.name, self._sent + 1, delay))
        if self._sent < self._policy.config.max_hedges:
            self._arm(delay, clock)
        self._start()

    def _start(self) -> None:
        number = self._sent
        self._sent += 1
        self._under_way += 1
        self._legs[number] = task = self._spawn(self._leg(number))
        if number:
            task.add_done_callback(self._hedged)

    def _hedged(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # before it began
            self._policy.take_back()

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
        is_unsent = number > 0 and _is_unsent(outcome)
        if is_unsent:
            self._policy.take_back()
        if self._over.is_set():
            return outcome
        self._tell_of_leg(outcome, verdict, number)
        self._call_off_hedges()
        good = verdict is Verdict.OK
        if not is_unsent and (good or self._best is _NO_ANSWER_YET):
            outcome, self._best, self._best_number = self._best, outcome, number
        if good or not self._under_way:
            self.hedge_won = good and number > 0
            self._tell_of_end()
            self._end(number if good else 0)
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

    def _end(self, winner: int = 0) -> None:
        """End the race; legs that were sent before its winner learn that they were overtaken."""
        self._over.set()
        self._call_off_hedges()
        for number, leg in self._legs.items():
            leg.cancel(OVERTAKEN if number < winner else None)


def _is_unsent(outcome: object) -> bool:
    is_cancelled = isinstance(outcome, asyncio.CancelledError)
    return isinstance(outcome, CallRefusedError) or (is_cancelled and UNSENT in vars(outcome))


async def _discard(outcome: Res | BaseException, semantics: Semantics[Any, Res]) -> None:
    if not isinstance(outcome, BaseException):
        await semantics.discard(outcome)


def _heed(outcome: object, semantics: Semantics[Any, Any], policy: HedgePolicy) -> Verdict:
    """Send no hedges for a while if the service asks for patience; return the verdict."""
    verdict = semantics.judge(outcome)
    if verdict is Verdict.BUSY:
        policy.hold_off(semantics.retry_after(outcome))
    return verdict
