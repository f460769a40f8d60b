"""Everything that protects one endpoint, for synchronous code in any number of threads."""

from __future__ import annotations

import functools
import inspect
import random
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple, ParamSpec, TypeVar

from shared.infrastructure.resilience.blocking.clock import THREADS, BlockingClock
from shared.infrastructure.resilience.blocking.course import Course, LayerClock, Outside
from shared.infrastructure.resilience.blocking.lines import ThreadBulkhead, ThreadLimiter
from shared.infrastructure.resilience.bulkhead import BulkheadConfig
from shared.infrastructure.resilience.circuit_breaker import CircuitBreaker, CircuitBreakerConfig
from shared.infrastructure.resilience.circuit_layers import CircuitBreakerLayer, CircuitGate
from shared.infrastructure.resilience.errors import ConfigurationError, DeadlineExceededError
from shared.infrastructure.resilience.events import NO_LISTENERS, Listeners
from shared.infrastructure.resilience.guard import status_of
from shared.infrastructure.resilience.health_monitor import HealthConfig, HealthLayer, HealthMonitor
from shared.infrastructure.resilience.layer import (
    Inner,
    Layer,
    PlainCall,
    Res,
    Semantics,
    Settle,
    Verdict,
    stack,
)
from shared.infrastructure.resilience.rate_limiter import RateLimitConfig, RateLimitLayer
from shared.infrastructure.resilience.retry import RetryConfig, RetryLayer
from shared.infrastructure.resilience.retry_budget import RetryBudget, RetryBudgetConfig
from shared.infrastructure.resilience.timeout import remaining_time

P = ParamSpec("P")
T = TypeVar("T")


class _Call(NamedTuple):
    """What goes through the layers: the function to call, or None for a `with` block."""

    do: Callable[[], Any] | None


class BlockingGuard:
    """Retry, circuit breaker, rate limit and bulkhead around calls of ordinary functions.

    The layers are those of a stack for tasks, in their right order; a thread walks through them
    itself and blocks where a task would wait. Make one guard for each endpoint and share it among
    all threads. None for a config leaves that part out.

    What is not an `Exception` (`KeyboardInterrupt`, `SystemExit`) says nothing about the endpoint:
    it gives back slot, probe and place in line, and is raised on. Only the rate permit of a call
    that had begun is spent.

    Args:
        name: Endpoint, used in errors and events.
        circuit_breaker: When to stop calling.
        rate_limit: How fast to call; threads get their permits in order of arrival.
        bulkhead: How many calls at once; threads get their slots in order of arrival.
        retry: How often to call again.
        retry_budget: What all retries together may cost; None (default) is unlimited.
        health: How to conclude from the calls how the endpoint is doing.
        judge: Says what a returned value or a raised `Exception` tells about the endpoint; by
            default a value is OK and an exception FAILED.
        retry_after: Reads off a value or an `Exception` how many seconds the endpoint asks to wait;
            by default its attribute `retry_after`, if it has one.
        clock: Source of time, and how to wait.
        rng: Source of jitter.
        listeners: Told of what is decided, under the lock.

    Attributes:
        name: As given.
        lock: Hold it while you use one of the parts below, as in `force_open()`.
        breaker: The circuit breaker, or None.
        limiter: The rate limiter, or None.
        bulkhead: The bulkhead, or None.
        budget: The retry budget, or None.
        health: The health monitor, or None.

    Raises:
        ConfigurationError: There is a `retry_budget` but no `retry`.
    """

    def __init__(
        self,
        name: str = "service",
        *,
        circuit_breaker: CircuitBreakerConfig | None = None,
        rate_limit: RateLimitConfig | None = None,
        bulkhead: BulkheadConfig | None = None,
        retry: RetryConfig | None = None,
        retry_budget: RetryBudgetConfig | None = None,
        health: HealthConfig | None = None,
        judge: Callable[[Any], Verdict] | None = None,
        retry_after: Callable[[Any], float | None] | None = None,
        clock: BlockingClock = THREADS,
        rng: random.Random | None = None,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        if retry_budget and not retry:
            raise ConfigurationError("a retry_budget pays for retries: give retry a config too")
        time = LayerClock(clock)
        self.name = name
        # Reentrant, so that a listener may look at the parts.
        self.lock = threading.RLock()
        self.breaker = (
            CircuitBreaker(name, circuit_breaker, clock=time, rng=rng, listeners=listeners)
            if circuit_breaker
            else None
        )
        self.limiter = ThreadLimiter(rate_limit.build(clock=time), time) if rate_limit else None
        self.bulkhead = (
            ThreadBulkhead(bulkhead, time, name=name, listeners=listeners) if bulkhead else None
        )
        self.budget = RetryBudget(retry_budget, clock=time) if retry_budget else None
        self.health = (
            HealthMonitor(name, None, health, clock=time, rng=rng, listeners=listeners)
            if health
            else None
        )
        layers: list[Layer[_Call, Any]] = [_not_too_late]
        # The order of `EndpointGuard`: cheap refusals, then the lines, then what counts.
        if self.breaker:
            layers.append(CircuitGate(self.breaker))
        if self.limiter and rate_limit:
            layers.append(
                RateLimitLayer(
                    self.limiter, rate_limit.max_wait, name=name, clock=time, listeners=listeners
                )
            )
        if self.bulkhead:
            layers.append(self.bulkhead.layer())
        if self.breaker:
            layers.append(CircuitBreakerLayer(self.breaker))
        if self.health:
            layers.append(HealthLayer(self.health, clock=time))
        semantics: Semantics[_Call, Any] = _ThreadCall(judge, retry_after)
        self._attempt = self._send = stack(_leave, *layers, semantics=semantics)
        if retry:
            again = RetryLayer(
                retry, name=name, budget=self.budget, clock=time, rng=rng, listeners=listeners
            )
            self._send = stack(self._attempt, again, semantics=semantics)

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` and return what it returns.

        Raises:
            Exception: What `function` raised, at its last attempt.
            CircuitOpenError: The circuit breaker let no attempt through.
            RateLimitExceededError: The permit would have come too late.
            BulkheadFullError: No slot came free in time.
            DeadlineExceededError: The deadline in force has passed.
        """
        course: Course[T] = Course(
            self._send(_Call(functools.partial(function, *args, **kwargs))), self.lock
        )
        course.go_on()
        return course.result

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Decorate `function` so that every call of it goes through `call`.

        Raises:
            ConfigurationError: It is a coroutine function or a generator function, whose call is
                over before it has done anything.
        """
        for is_lazy in (
            inspect.iscoroutinefunction,
            inspect.isgeneratorfunction,
            inspect.isasyncgenfunction,
        ):
            if is_lazy(function):
                raise ConfigurationError(
                    f"{function!r} does nothing when it is called: for a coroutine use `stack`, "
                    f"for a generator a function that reads it to its end"
                )

        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.call(function, *args, **kwargs)

        return guarded

    @contextmanager
    def attempt(self) -> Generator[None, None, None]:
        """Make the `with` block one attempt; it is not retried, for a block runs only once.

        Raises what `call` raises.
        """
        course: Course[None] = Course(self._attempt(_Call(None)), self.lock)
        course.go_on()
        try:
            yield
        except BaseException as exc:
            course.go_on(exc)  # which raises it
        else:
            course.go_on()

    def snapshot(self) -> dict[str, Any]:
        """Return the state of every part; a part that is switched off is `{"enabled": False}`."""
        parts = {
            "circuit_breaker": self.breaker,
            "rate_limiter": self.limiter,
            "bulkhead": self.bulkhead,
            "retry_budget": self.budget,
            "health": self.health,
        }
        with self.lock:
            return {name: status_of(part) for name, part in parts.items()}


class _ThreadCall(PlainCall):
    """Semantics of a call that is over when its function returns."""

    def __init__(
        self,
        judge: Callable[[Any], Verdict] | None,
        retry_after: Callable[[Any], float | None] | None,
    ) -> None:
        self._judge = judge
        self._retry_after = retry_after or super().retry_after

    def judge(self, outcome: object) -> Verdict:
        verdict = super().judge(outcome)
        if self._judge is None or verdict is Verdict.VOID:
            return verdict
        return self._judge(outcome)

    def watch(self, response: Res, settle: Settle) -> Res:
        settle(self.judge(response))
        return response

    def retry_after(self, outcome: object) -> float | None:
        return self._retry_after(outcome)


async def _not_too_late(call: _Call, inner: Inner[_Call, Any]) -> Any:
    """Begin no attempt after the deadline: nothing could end it."""
    if remaining_time() == 0.0:
        raise DeadlineExceededError("the deadline passed before the attempt began")
    return await inner.send(call)


async def _leave(call: _Call) -> Any:
    """Make the call itself, without the lock."""
    return await Outside(call.do)
