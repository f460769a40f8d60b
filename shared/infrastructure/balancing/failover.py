"""Failover: whether and when another attempt of a call is made; which host gets it is Balance's."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import httpx

from shared.infrastructure.balancing.call import ATTEMPT, CALL, FAULT, Call, Outlook, call_of
from shared.infrastructure.balancing.classify import EARLIER, fault_of, status_error
from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.faults import RULES, Fault
from shared.infrastructure.balancing.semantics import host_of
from shared.infrastructure.http import UpstreamError
from shared.infrastructure.resilience import (
    MONOTONIC,
    AttemptEnded,
    BudgetSpent,
    CallRefusedError,
    Clock,
    ConfigurationError,
    DeadlineExceededError,
    Listeners,
    RetryBudget,
    RetryConfig,
    RetryGivenUp,
    RetryScheduled,
    ServiceError,
    Verdict,
)
from shared.infrastructure.resilience.events import NO_LISTENERS, DelayReason, GiveUpReason
from shared.infrastructure.resilience.layer import Inner
from shared.infrastructure.resilience.timeout import remaining_time
from shared.infrastructure.resilience.trace import current_trace, trace_call

Outcome = httpx.Response | Exception

HAS_FALLBACK = "has_fallback"
"""Request extension: another model may be asked, so that a busy host need not be waited for."""

# What may come of having asked another host: it says nothing of why the call went there.
_OF_ELSEWHERE = frozenset({Fault.MISCONFIGURED, Fault.NO_MODEL, Fault.OURS})
# What ends a call that might have gone on, and is worth a note on its error.
_CIRCUMSTANCES: frozenset[GiveUpReason] = frozenset({"deadline", "retry_after", "budget"})


class _Plan(NamedTuple):
    """When the next attempt is made, and what that goes by."""

    delay: float
    reason: DelayReason


class Failover:
    """Sends a call again, by the rule of what went wrong, until there is an answer.

    Position: above hedging and balancing, below the deadline. A fresh host is asked at once; where
    none is left, one that may have another attempt after a wait: exponential, with full jitter, on
    top of what the host asked for, so that those who wait for it do not all come back at once. What
    may have effects beyond an answer is sent again only if it had none for certain. What lies with
    the request ends the call at its first attempt, and a host that fell silent is not asked again.

    The last outcome stands, except that what only came of asking elsewhere (a key that is none, a
    model that is missing, no host left) does not hide why the call went there. An error carries the
    `attempts`, the errors of the others as `earlier`, and the `trace`; an error response has those
    errors as extension `EARLIER`. Of an answer the call knows what it was `answered_by`.

    It is a plain loop and not tenacity's: whether to go on, how long to wait and what to keep
    depend on the same few facts about one call, which hooks would have to pass on to each other.

    Args:
        outlook: When some host may take another attempt of a call; None if none ever may.
        retry: Delays between attempts at hosts that had theirs; None is a single attempt.
        config: `max_wait` bounds what a host may ask for.
        name: The pool, in events.
        budget: Pays for all attempts after the first of each call; None is unlimited.
        clock: Source of monotonic time.
        rng: Source of jitter.
        listeners: Told of every failed attempt, every further one, and why a call was given up.

    Raises:
        ConfigurationError: `retry` has a `wait` or `stop` of tenacity.
    """

    def __init__(
        self,
        outlook: Callable[[Call], Outlook | None],
        retry: RetryConfig | None,
        config: BalanceConfig,
        *,
        name: str = "llm",
        budget: RetryBudget | None = None,
        clock: Clock = MONOTONIC,
        rng: random.Random | None = None,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        if retry is not None and (retry.wait is not None or retry.stop is not None):
            raise ConfigurationError(
                "a pool goes by base_delay, max_delay, exponential_base and max_retries: "
                "leave wait and stop out of its retry_config"
            )
        self._outlook = outlook
        self._retry = retry
        self._max_wait = min(config.max_wait, retry.max_retry_after) if retry else 0.0
        self._name = name
        self._budget = budget
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._listeners = listeners

    def describe(self) -> str:
        """Say the main numbers in one line."""
        line = f"Failover: {self._retry.describe() if self._retry else 'a single attempt'}"
        return f"{line}, {self._budget.describe()}" if self._budget else line

    async def __call__(
        self, request: httpx.Request, inner: Inner[httpx.Request, httpx.Response]
    ) -> httpx.Response:
        call: Call = request.extensions[CALL]
        if call.prepaid:
            return await self._prepaid(call, request, inner)
        outcome: Outcome
        try:
            outcome = await inner.send(request)
        except Exception as exc:
            outcome = exc
        else:
            if outcome.status_code < 400 and FAULT not in outcome.extensions:
                if self._budget is not None:
                    self._budget.succeed()
                call.answered_by = outcome.extensions.get(ATTEMPT)
                return outcome
        course = _Course(request, inner)
        if current_trace() is not None:
            return await self._go_on(course, outcome)
        with trace_call(clock=self._clock):
            return await self._go_on(course, outcome)

    async def pause(self, call: Call) -> bool:
        """Wait as before another attempt of a call whose stream broke off.

        Returns:
            Whether there may be one; it is paid for then, unless it is never sent.
        """
        last = call.attempts[-1] if call.attempts else None
        fault = last.fault if last and last.fault else Fault.BROKEN
        plan = self._plan(call)
        if isinstance(plan, str) or not self._pay(fault):
            reason = plan if isinstance(plan, str) else "budget"
            self._listeners(RetryGivenUp(self._name, len(call.attempts), reason))
            return False
        cause = last.outcome if last else fault.value
        self._listeners(
            RetryScheduled(self._name, len(call.attempts), plan.delay, cause, plan.reason)
        )
        try:
            if plan.delay > 0:
                await self._clock.sleep(plan.delay)
        except BaseException:
            self._give_back(fault)
            raise
        call.prepaid.append(fault)
        return True

    async def _prepaid(
        self, call: Call, request: httpx.Request, inner: Inner[httpx.Request, httpx.Response]
    ) -> httpx.Response:
        """Send what `pause` has paid for; if it is never sent, give the payment back."""
        fault, before = call.prepaid.pop(), len(call.attempts)
        try:
            return await self(request, inner)
        finally:
            if len(call.attempts) == before:
                self._give_back(fault)

    async def _go_on(self, course: _Course, outcome: Outcome) -> httpx.Response:
        while (fault := course.note(outcome)) is not None:
            self._tell_of_attempt(course, outcome, fault)
            plan = self._plan_after(course, outcome, fault)
            if plan is None:
                break
            if isinstance(plan, str):
                self._give_up(course, plan)
                break
            self._listeners(
                RetryScheduled(
                    self._name,
                    course.attempts,
                    plan.delay,
                    course.describe(outcome),
                    plan.reason,
                )
            )
            outcome = await self._again(course, outcome, plan.delay, fault)
        if fault is None:
            self._tell_of_attempt(course, outcome, fault)
            if self._budget is not None:
                self._budget.succeed()
        return await course.result()

    async def _again(self, course: _Course, last: Outcome, delay: float, fault: Fault) -> Outcome:
        """Make another attempt that is paid for; what is never sent gets its payment back."""
        before = course.attempts
        try:
            await course.let_go(last)
            if delay > 0:
                await self._clock.sleep(delay)
            return await course.inner.send(course.request)
        except Exception as exc:
            return exc
        finally:
            if course.attempts == before:
                self._give_back(fault)

    def _plan_after(
        self, course: _Course, outcome: Outcome, fault: Fault
    ) -> _Plan | GiveUpReason | None:
        """Decide on another attempt, and pay for it; None leaves the call to another model."""
        if isinstance(outcome, CallRefusedError):
            return "refused"
        rule = RULES[fault]
        if not (rule.other_host or rule.same_host):
            return "void"
        if not course.inner.semantics.repeatable(course.request, outcome):
            return "attempts" if course.call.is_spent else "not_repeatable"
        course.heed(outcome)
        plan = self._plan(course.call)
        if isinstance(plan, str):
            return plan
        gives_way = fault is Fault.OVERLOADED and HAS_FALLBACK in course.request.extensions
        if gives_way and plan.reason != "at_once":
            return None
        return plan if self._pay(fault) else "budget"

    def _plan(self, call: Call) -> _Plan | GiveUpReason:
        if self._retry is None or call.is_spent:
            return "attempts"
        outlook = self._outlook(call)
        if outlook is None:
            return "attempts"
        asked, own = outlook.seconds, self._retry.delay(len(call.attempts), self._rng)
        if outlook.is_fresh and not asked:
            return _Plan(0.0, "at_once")
        if asked > self._max_wait:
            return "retry_after"
        delay, left = max(asked, own), self._time_left(call)
        if asked and self._retry.jitter:
            # Those who wait for the same host must not all come back in the same moment.
            spread = max(own, self._rng.uniform(0.0, asked / 10))
            delay = asked + min(spread, max(0.0, left - asked) / 2)
        if delay >= left:
            return "deadline"
        return _Plan(delay, "retry_after" if asked > own else "backoff")

    def _time_left(self, call: Call) -> float:
        left = remaining_time()
        until = math.inf if call.deadline is None else call.deadline - self._clock.now()
        return until if left is None else min(left, until)

    def _pay(self, fault: Fault) -> bool:
        if self._budget is None:
            return True
        throttled = fault is Fault.THROTTLED
        if not self._budget.try_acquire(throttled=throttled):
            return False
        cost = self._budget.cost(throttled=throttled)
        self._listeners(BudgetSpent(self._name, cost, self._budget.tokens))
        return True

    def _give_back(self, fault: Fault) -> None:
        if self._budget is not None:
            self._budget.refund(throttled=fault is Fault.THROTTLED)

    def _tell_of_attempt(self, course: _Course, outcome: Outcome, fault: Fault | None) -> None:
        if not isinstance(outcome, CallRefusedError):
            words = course.describe(outcome)
            verdict = Verdict.OK if fault is None else RULES[fault].verdict
            self._listeners(AttemptEnded(self._name, course.attempts, verdict.value, words))

    def _give_up(self, course: _Course, reason: GiveUpReason) -> None:
        event = RetryGivenUp(self._name, course.attempts, reason)
        self._listeners(event)
        if reason in _CIRCUMSTANCES:
            course.note_of_end = f"{self._name}: {event}"


class _Course:
    """A call whose first attempt gave no answer, and what came of each attempt since."""

    def __init__(self, request: httpx.Request, inner: Inner[httpx.Request, httpx.Response]) -> None:
        self.request = request
        self.inner = inner
        self.call = call_of(request.extensions)
        self.note_of_end: str | None = None
        self._outcomes: list[tuple[Outcome, Fault | None]] = []

    @property
    def attempts(self) -> int:
        """Attempts sent so far."""
        return len(self.call.attempts)

    def note(self, outcome: Outcome) -> Fault | None:
        """Take note of an outcome; return what was wrong with it."""
        fault = fault_of(outcome)
        self._outcomes.append((outcome, fault))
        return fault

    def describe(self, outcome: Outcome) -> str:
        """Say in a few words what came of an attempt."""
        return self.inner.semantics.describe(self.request, outcome)

    def heed(self, outcome: Outcome) -> None:
        """Leave a host alone for the rest of the call if it would only say the same again."""
        host = host_of(outcome) or self.call.host
        if isinstance(outcome, Exception):
            is_final = isinstance(outcome, UpstreamError) and outcome.is_final
        else:
            is_final = outcome.headers.get("x-should-retry") == "false"
        if is_final and host is not None:
            self.call.left[host] = 0

    async def let_go(self, outcome: Outcome) -> None:
        """Give back what an outcome holds that is not handed up."""
        if not isinstance(outcome, Exception):
            await self.inner.semantics.discard(outcome)

    async def result(self) -> httpx.Response:
        """Return or raise the outcome that stands, with the story of the call."""
        last, fault = self._outcomes[-1]
        if not isinstance(last, Exception) and fault is None:
            self.call.answered_by = last.extensions.get(ATTEMPT)
            return last
        stands = self._standing()
        if stands is not last:
            await self.let_go(last)
        others = tuple(_error_of(outcome) for outcome, _ in self._outcomes if outcome is not stands)
        if not isinstance(stands, Exception):
            stands.extensions = {**stands.extensions, EARLIER: others}
            if stands is last or stands.is_stream_consumed:
                return stands
            stands = status_error(stands)  # its body was given up unread
        if isinstance(stands, ServiceError):
            stands.attempts = self.attempts
            stands.earlier = others
            stands.trace = current_trace()
        if self.note_of_end is not None:
            stands.add_note(self.note_of_end)
        raise stands

    def _standing(self) -> Outcome:
        last, fault = self._outcomes[-1]
        is_ours = isinstance(last, Exception) and not isinstance(last, ServiceError)
        if fault not in _OF_ELSEWHERE or is_ours or isinstance(last, DeadlineExceededError):
            return last
        real = [outcome for outcome, fault in self._outcomes if fault not in _OF_ELSEWHERE]
        return real[-1] if real else last


def _error_of(outcome: Outcome) -> Exception:
    return outcome if isinstance(outcome, Exception) else status_error(outcome)
