"""Retry with exponential backoff and jitter; tenacity is entered only after a first failure."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Generic, NamedTuple

import tenacity
from pydantic import BaseModel, Field

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import CallRefusedError, ServiceError
from shared.infrastructure.resilience.events import (
    NO_LISTENERS,
    AttemptEnded,
    BudgetSpent,
    DelayReason,
    GiveUpReason,
    Listeners,
    RetryGivenUp,
    RetryScheduled,
)
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res, Verdict
from shared.infrastructure.resilience.retry_budget import RetryBudget
from shared.infrastructure.resilience.timeout import remaining_time
from shared.infrastructure.resilience.trace import current_trace, trace_call

# Bound once: both are read on every call.
_OK, _VOID = Verdict.OK, Verdict.VOID


class RetryConfig(BaseModel, frozen=True, extra="forbid"):
    """How often a failed call is sent again, and how long to wait in between.

    Attributes:
        max_retries: Attempts after the first; 3; at least 0.
        base_delay: Seconds before the first retry; 1; at least 0.
        max_delay: Upper bound of a delay in seconds; 60; at least 0.
        exponential_base: Growth of the delay with each attempt; 2; at least 1.
        jitter: Draw each delay evenly from zero to its bound, so that callers who failed together
            do not come back together; True.
        retry_busy: Also retry an answer that asks for patience (HTTP 429); False.
        max_retry_after: Longest wait a service may ask for, in seconds; 60. Asked for more, the
            call gives up at once: to come back earlier would be rude, to sleep longer useless.
        wait: A wait of tenacity, `wait_random_exponential(...)` for one, in place of the four
            fields above that make a delay; None. What a service asks for still comes on top.
        stop: A stop of tenacity, `stop_after_delay(...)` for one, that may end a call before
            `max_retries` do; None. Its time counts from the beginning of the first attempt.
    """

    max_retries: int = Field(default=3, ge=0)
    base_delay: float = Field(default=1.0, ge=0)
    max_delay: float = Field(default=60.0, ge=0)
    exponential_base: float = Field(default=2.0, ge=1)
    jitter: bool = True
    retry_busy: bool = False
    max_retry_after: float = Field(default=60.0, ge=0)
    wait: Callable[[tenacity.RetryCallState], float] | None = None
    stop: Callable[[tenacity.RetryCallState], bool] | None = None

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Return the seconds to wait after the failure of attempt number `attempt` (from 1)."""
        try:
            grown = self.base_delay * self.exponential_base ** (attempt - 1)
        except OverflowError:
            grown = self.max_delay
        bound = min(self.max_delay, grown)
        # Drawn after the cap: clipping afterwards would line all callers up at `max_delay`.
        return rng.uniform(0.0, bound) if self.jitter else bound

    def describe(self) -> str:
        """Say the main numbers in a few words."""
        retries = f"{self.max_retries} {'retry' if self.max_retries == 1 else 'retries'}"
        if self.wait is not None:
            delays = f"wait by {type(self.wait).__name__}"
        elif self.exponential_base == 1:
            delays = f"{min(self.base_delay, self.max_delay):g} s apart"
        else:
            growth = "doubling" if self.exponential_base == 2 else f"x {self.exponential_base:g}"
            delays = f"{self.base_delay:g} s {growth} to {self.max_delay:g} s"
        parts = [retries, delays]
        if self.jitter and self.wait is None:
            parts.append("jitter")
        if self.stop is not None:
            parts.append(f"stop by {type(self.stop).__name__}")
        return ", ".join(parts)


def _never(_request: Any) -> bool:
    return False


# What ends a call that might have gone on, and is worth a note on its error.
_CIRCUMSTANCES: frozenset[GiveUpReason] = frozenset({"stop", "deadline", "retry_after", "budget"})


@Position.REPEAT
class RetryLayer:
    """Send a call again while it fails, may be repeated, and time and attempts are left.

    Position: above everything that is per attempt (breaker, limiter, timeout, balancing). A call
    we refused ourselves is not retried: nothing was sent, and the reason will not have changed.

    When attempts run out the last outcome stands: a response is returned as it is, an error is
    raised, and a `ServiceError` then carries `attempts`, the `earlier` errors and the `trace`. The
    same holds when the deadline, a wish of the service or the budget ends a call early; a note on
    the error then says so.

    Args:
        config: Attempts and delays.
        name: Service, used in events.
        at_once: Says that a request need not wait before its next attempt, as when that goes to
            another host.
        budget: Pays for the retries of all who call the same origin; None (default) is unlimited.
        clock: Source of monotonic time.
        rng: Source of jitter.
        listeners: Told of every failed attempt, every retry, and why a call was given up.
    """

    def __init__(
        self,
        config: RetryConfig,
        *,
        name: str = "service",
        at_once: Callable[[Any], bool] = _never,
        budget: RetryBudget | None = None,
        clock: Clock = MONOTONIC,
        rng: random.Random | None = None,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self._config = config
        self._name = name
        self._at_once = at_once
        self._budget = budget
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._listeners = listeners
        self._is_timed = config.wait is not None or config.stop is not None

    def describe(self) -> str:
        """Say the main numbers in one line."""
        line = f"RetryLayer: {self._config.describe()}"
        return f"{line}, {self._budget.describe()}" if self._budget else line

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        began = self._clock.now() if self._is_timed else 0.0
        first: Res | Exception
        try:
            first = await inner.send(request)
        except Exception as exc:
            verdict = inner.semantics.judge(exc)
            if verdict is _VOID:
                raise
            first = exc
        else:
            verdict = inner.semantics.judge(first)
            if verdict is _OK:
                if self._budget is not None:
                    self._budget.succeed()
                return first
            if verdict is _VOID:
                return first
        call = _Repetition(request, inner, first, verdict, began)
        if current_trace() is not None:
            return await self._go_on(call)
        with trace_call(clock=self._clock):
            return await self._go_on(call)

    async def _go_on(self, call: _Repetition[Req, Res]) -> Res:
        if self._is_worth_repeating(call):
            await self._repeat(call)
        return call.result()

    def _is_worth_repeating(self, call: _Repetition[Req, Res]) -> bool:
        """Take note of the latest outcome, and say whether it asks for another attempt."""
        if not isinstance(call.last, CallRefusedError):
            verdict = call.verdict.value
            self._listeners(AttemptEnded(self._name, call.attempts, verdict, call.outcome))
        if call.verdict is _OK:
            return False
        reason = self._why_not(call)
        if reason is not None:
            self._give_up(call, reason)
        return reason is None

    def _why_not(self, call: _Repetition[Req, Res]) -> GiveUpReason | None:
        if isinstance(call.last, CallRefusedError):
            return "refused"
        if call.verdict is _VOID:
            return "void"
        is_answer = not isinstance(call.last, Exception)
        if call.verdict is Verdict.BUSY and is_answer and not self._config.retry_busy:
            return "busy"
        if call.attempts > self._config.max_retries:
            return "attempts"
        repeatable = call.inner.semantics.repeatable(call.request, call.last)
        return None if repeatable else "not_repeatable"

    def _give_up(self, call: _Repetition[Req, Res], reason: GiveUpReason) -> None:
        event = RetryGivenUp(self._name, call.attempts, reason)
        self._listeners(event)
        if reason in _CIRCUMSTANCES and isinstance(call.last, Exception):
            call.last.add_note(f"{self._name}: {event}")

    async def _repeat(self, call: _Repetition[Req, Res]) -> None:
        def again(state: tenacity.RetryCallState) -> bool:
            # tenacity catches a cancellation too; only one that is not retried comes out again.
            if state.outcome is not None and state.outcome.failed:
                return False
            return state.attempt_number == 1 or self._is_worth_repeating(call)

        def stop(state: tenacity.RetryCallState) -> bool:
            reason = self._why_stop(call, state)
            if reason is not None:
                self._give_up(call, reason)
            return reason is not None

        async def before_sleep(state: tenacity.RetryCallState) -> None:
            delay, reason = state.upcoming_sleep, call.delay_reason
            event = RetryScheduled(self._name, call.attempts, delay, call.outcome, reason)
            self._listeners(event)
            await call.discard_last()

        retrying = tenacity.AsyncRetrying(
            retry=again,
            wait=lambda state: self._wait(call, state),
            stop=stop,
            sleep=self._clock.sleep,
            before_sleep=before_sleep,
            retry_error_callback=lambda _: None,
        )
        try:
            await retrying(call.attempt)
        finally:
            self._settle(call)

    def _wait(self, call: _Repetition[Req, Res], state: tenacity.RetryCallState) -> float:
        if self._is_timed:
            call.show(state, self._clock.now())
        if self._at_once(call.request):
            call.delay_reason = "at_once"
            return 0.0
        own = (self._config.wait or self._backoff)(state)
        call.delay_reason = "retry_after" if call.retry_after > own else "backoff"
        return max(own, call.retry_after)

    def _backoff(self, state: tenacity.RetryCallState) -> float:
        return self._config.delay(state.attempt_number, self._rng)

    def _why_stop(
        self, call: _Repetition[Req, Res], state: tenacity.RetryCallState
    ) -> GiveUpReason | None:
        if self._config.stop is not None and self._config.stop(state):
            return "stop"
        wait, left = state.upcoming_sleep, remaining_time()
        if wait > 0 and call.retry_after > self._config.max_retry_after:
            return "retry_after"
        if left is not None and wait >= left:
            return "deadline"
        return None if self._pay(call) else "budget"

    def _pay(self, call: _Repetition[Req, Res]) -> bool:
        """Pay for another attempt, now that it is sure to be scheduled."""
        budget, throttled = self._budget, call.verdict is Verdict.BUSY
        if budget is None:
            return True
        if not budget.try_acquire(throttled=throttled):
            return False
        call.unsent = _Payment(budget, throttled)
        cost = budget.cost(throttled=throttled)
        self._listeners(BudgetSpent(self._name, cost, budget.tokens))
        return True

    def _settle(self, call: _Repetition[Req, Res]) -> None:
        if call.unsent is not None:
            call.unsent.budget.refund(throttled=call.unsent.throttled)
        if self._budget is not None and call.verdict is _OK:
            self._budget.succeed()


class _Payment(NamedTuple):
    """What was taken from a budget for one retry."""

    budget: RetryBudget
    throttled: bool


class _Repetition(Generic[Req, Res]):
    """A call whose first attempt was no success: what came of each attempt, as a value."""

    def __init__(
        self,
        request: Req,
        inner: Inner[Req, Res],
        first: Res | Exception,
        verdict: Verdict,
        began: float,
    ) -> None:
        self.request = request
        self.inner = inner
        self.last = first
        self.verdict = verdict
        self.attempts = 1
        self.unsent: _Payment | None = None
        self.delay_reason: DelayReason = "backoff"
        self._began = began
        self._is_new = True
        self._earlier: list[Exception] = []

    @property
    def outcome(self) -> str:
        """What came of the last attempt, in a few words."""
        return self.inner.semantics.describe(self.request, self.last)

    @property
    def retry_after(self) -> float:
        """Seconds the service asked us to wait, 0.0 if it did not."""
        return self.inner.semantics.retry_after(self.last) or 0.0

    def show(self, state: tenacity.RetryCallState, now: float) -> None:
        """Let a wait or a stop of tenacity see the real outcome and the real times."""
        failed = isinstance(self.last, Exception)
        state.outcome = tenacity.Future.construct(self.attempts, self.last, failed)
        state.start_time, state.outcome_timestamp = self._began, now

    async def attempt(self) -> None:
        """Make an attempt; the one that is already made counts as the first."""
        if self._is_new:
            self._is_new = False
            return
        if isinstance(self.last, Exception):
            self._earlier.append(self.last)
        payment, self.unsent = self.unsent, None
        try:
            self.last = await self.inner.send(self.request)
        except Exception as exc:  # a value here, raised by `result`
            self.last = exc
        self.verdict = self.inner.semantics.judge(self.last)
        if isinstance(self.last, CallRefusedError):
            self.unsent = payment
        else:
            self.attempts += 1

    async def discard_last(self) -> None:
        """Give back what the last response holds."""
        if not isinstance(self.last, Exception):
            await self.inner.semantics.discard(self.last)

    def result(self) -> Res:
        """Return the last response, or raise the last error with the story of the call."""
        if not isinstance(self.last, Exception):
            return self.last
        if isinstance(self.last, ServiceError):
            self.last.attempts = self.attempts
            self.last.earlier = tuple(self._earlier)
            self.last.trace = current_trace()
        raise self.last
