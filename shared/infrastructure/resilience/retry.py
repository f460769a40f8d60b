"""Retry with exponential backoff and jitter; tenacity is entered only after a first failure."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Generic, NamedTuple

import tenacity
from pydantic import BaseModel, Field

from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import CallRefusedError, ServiceError
from shared.infrastructure.resilience.events import NO_LISTENERS, Listeners, RetryScheduled
from shared.infrastructure.resilience.layer import Inner, Position, Req, Res, Semantics, Verdict
from shared.infrastructure.resilience.retry_budget import RetryBudget
from shared.infrastructure.resilience.timeout import remaining_time


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
    """

    max_retries: int = Field(default=3, ge=0)
    base_delay: float = Field(default=1.0, ge=0)
    max_delay: float = Field(default=60.0, ge=0)
    exponential_base: float = Field(default=2.0, ge=1)
    jitter: bool = True
    retry_busy: bool = False
    max_retry_after: float = Field(default=60.0, ge=0)

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Return the seconds to wait after the failure of attempt number `attempt` (from 1)."""
        try:
            grown = self.base_delay * self.exponential_base ** (attempt - 1)
        except OverflowError:
            grown = self.max_delay
        bound = min(self.max_delay, grown)
        # Drawn after the cap: clipping afterwards would line all callers up at `max_delay`.
        return rng.uniform(0.0, bound) if self.jitter else bound


def _never(_request: Any) -> bool:
    return False


@Position.REPEAT
class RetryLayer:
    """Send a call again while it fails, may be repeated, and time and attempts are left.

    Position: above everything that is per attempt (breaker, limiter, timeout, balancing). A call
    we refused ourselves is not retried: nothing was sent, and the reason will not have changed.

    When attempts run out the last outcome stands: a response is returned as it is, an error is
    raised, and a `ServiceError` then carries `attempts` and the `earlier` errors. The same holds
    when the budget does not pay for another attempt; a note on the error then says so.

    Args:
        config: Attempts and delays.
        name: Service, used in events.
        at_once: Says that a request need not wait before its next attempt, as when that goes to
            another host.
        budget: Pays for the retries of all who call the same origin; None (default) is unlimited.
        clock: Source of monotonic time.
        rng: Source of jitter.
        listeners: Told of every retry.
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

    async def __call__(self, request: Req, inner: Inner[Req, Res]) -> Res:
        first: Res | Exception
        try:
            first = await inner.send(request)
        except Exception as exc:
            if not self._worth_repeating(request, exc, inner.semantics):
                if isinstance(exc, ServiceError) and inner.semantics.judge(exc) is not Verdict.VOID:
                    exc.attempts = 1
                raise
            first = exc
        else:
            if not self._worth_repeating(request, first, inner.semantics):
                self._pay_in(first, inner.semantics)
                return first
        return await self._repeat(_Repetition(request, inner, first))

    def _worth_repeating(
        self, request: Req, outcome: Res | Exception, semantics: Semantics[Req, Res]
    ) -> bool:
        verdict = semantics.judge(outcome)
        if verdict is Verdict.OK:
            return False
        wanted = verdict is Verdict.FAILED or (verdict is Verdict.BUSY and self._config.retry_busy)
        return wanted and self._config.max_retries > 0 and semantics.repeatable(request, outcome)

    async def _repeat(self, call: _Repetition[Req, Res]) -> Res:
        request, semantics = call.request, call.inner.semantics

        def again(state: tenacity.RetryCallState) -> bool:
            # tenacity catches a cancellation too; only one that is not retried comes out again.
            cancelled = state.outcome is not None and state.outcome.failed
            return not cancelled and self._worth_repeating(request, call.last, semantics)

        async def before_sleep(state: tenacity.RetryCallState) -> None:
            cause = type(call.last).__name__
            delay = state.upcoming_sleep
            self._listeners(RetryScheduled(self._name, state.attempt_number, delay, cause))
            await call.discard_last()

        retrying = tenacity.AsyncRetrying(
            retry=again,
            wait=lambda state: self._wait(call, state.attempt_number),
            stop=lambda state: self._gives_up(call, state),
            sleep=self._clock.sleep,
            before_sleep=before_sleep,
            retry_error_callback=lambda _: None,
        )
        try:
            await retrying(call.attempt)
        finally:
            self._settle(call)
        return call.result()

    def _wait(self, call: _Repetition[Req, Res], attempt: int) -> float:
        if self._at_once(call.request):
            return 0.0
        return max(self._config.delay(attempt, self._rng), call.retry_after)

    def _gives_up(self, call: _Repetition[Req, Res], state: tenacity.RetryCallState) -> bool:
        if state.attempt_number > self._config.max_retries:
            return True
        wait, left = state.upcoming_sleep, remaining_time()
        too_long = wait > 0 and call.retry_after > self._config.max_retry_after
        if too_long or (left is not None and wait >= left):
            return True
        return not self._afford(call)

    def _afford(self, call: _Repetition[Req, Res]) -> bool:
        if self._budget is None:
            return True
        throttled = call.inner.semantics.judge(call.last) is Verdict.BUSY
        if self._budget.try_acquire(throttled=throttled):
            call.unsent = _Payment(self._budget, throttled)
            return True
        if isinstance(call.last, Exception):
            call.last.add_note(f"not tried again: the retry budget of {self._name} is spent")
        return False

    def _settle(self, call: _Repetition[Req, Res]) -> None:
        if call.unsent is not None:
            call.unsent.budget.refund(throttled=call.unsent.throttled)
        self._pay_in(call.last, call.inner.semantics)

    def _pay_in(self, outcome: Res | Exception, semantics: Semantics[Req, Res]) -> None:
        if self._budget is not None and semantics.judge(outcome) is Verdict.OK:
            self._budget.succeed()


class _Payment(NamedTuple):
    """What was taken from a budget for one retry."""

    budget: RetryBudget
    throttled: bool


class _Repetition(Generic[Req, Res]):
    """A call whose first attempt failed: what came of each attempt, as a value."""

    def __init__(self, request: Req, inner: Inner[Req, Res], first: Res | Exception) -> None:
        self.request = request
        self.inner = inner
        self.last: Res | Exception = first
        self.unsent: _Payment | None = None
        self._attempts = 0
        self._errors: list[Exception] = []

    @property
    def retry_after(self) -> float:
        """Seconds the service asked us to wait, 0.0 if it did not."""
        return self.inner.semantics.retry_after(self.last) or 0.0

    async def attempt(self) -> None:
        """Make an attempt; the one that is already made counts as the first."""
        if self._attempts:
            payment, self.unsent = self.unsent, None
            try:
                self.last = await self.inner.send(self.request)
            except Exception as exc:  # a value here, raised by `result`
                self.last = exc
                if isinstance(exc, CallRefusedError):
                    self.unsent = payment
        self._attempts += 1
        if isinstance(self.last, Exception):
            self._errors.append(self.last)

    async def discard_last(self) -> None:
        """Give back what the last response holds."""
        if not isinstance(self.last, Exception):
            await self.inner.semantics.discard(self.last)

    def result(self) -> Res:
        """Return the last response, or raise the last error with the story of the call."""
        if not isinstance(self.last, Exception):
            return self.last
        if isinstance(self.last, ServiceError):
            # A refusal ends the call, but it was no attempt.
            self.last.attempts = self._attempts - isinstance(self.last, CallRefusedError)
            self.last.earlier = tuple(self._errors[:-1])
        raise self.last
