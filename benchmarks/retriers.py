"""One adapter for each retrier, told the same: attempts, exponential delays, a time limit."""

# ruff: noqa: PLC0415 - a library that is missing must not keep the others from running

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    DeadlineLayer,
    Layer,
    RetryConfig,
    RetryLayer,
    SystemClock,
    stack,
)

Call = Callable[[], Awaitable[object]]
Retry = Callable[[Call], Awaitable[object]]

# Seeded, so that every run draws the same.
_RNG = random.Random(0)  # noqa: S311 - jitter is no secret


@dataclass(frozen=True)
class Plan:
    """What a retrier is asked to do; times are seconds."""

    attempts: int
    first_delay: float
    longest_delay: float
    time_limit: float | None = None


class BusyError(ConnectionError):
    """A failure that may say when to come back.

    Args:
        retry_after: Seconds the service asks to wait.
    """

    def __init__(self, retry_after: float | None = None) -> None:
        super().__init__("try again later")
        self.retry_after = retry_after


async def morgan(plan: Plan) -> Retry:
    clock = SystemClock()
    config = RetryConfig(
        max_retries=plan.attempts - 1,
        base_delay=plan.first_delay,
        max_delay=plan.longest_delay,
    )
    layers: list[Layer[Call, object]] = [RetryLayer(config, clock=clock, rng=_RNG)]
    if plan.time_limit is not None:
        layers = [DeadlineLayer(plan.time_limit, clock=clock), *layers]

    async def wire(function: Call) -> object:
        return await function()

    return stack(wire, *layers, semantics=PLAIN_CALL)


async def tenacity_exponential_jitter(plan: Plan) -> Retry:
    import tenacity as peer

    wait = peer.wait_exponential_jitter(initial=plan.first_delay, max=plan.longest_delay)
    return _tenacity(plan, wait)


async def tenacity_random_exponential(plan: Plan) -> Retry:
    import tenacity as peer

    wait = peer.wait_random_exponential(multiplier=plan.first_delay, max=plan.longest_delay)
    return _tenacity(plan, wait)


def _tenacity(plan: Plan, wait: Callable[..., float]) -> Retry:
    import tenacity as peer

    def wait_at_least(state: peer.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(wait(state), getattr(error, "retry_after", None) or 0.0)

    stop = peer.stop_after_attempt(plan.attempts)
    if plan.time_limit is not None:
        stop = stop | peer.stop_after_delay(plan.time_limit)
    return peer.AsyncRetrying(stop=stop, wait=wait_at_least, reraise=True)


async def stamina(plan: Plan) -> Retry:
    import stamina as peer

    peer.instrumentation.set_on_retry_hooks([])  # it would log every retry

    def backoff(error: Exception) -> bool | float:
        return getattr(error, "retry_after", None) or True

    caller = peer.AsyncRetryingCaller(
        attempts=plan.attempts,
        timeout=plan.time_limit,
        wait_initial=plan.first_delay,
        wait_max=plan.longest_delay,
    )
    return caller.on(backoff)


async def nopanic(plan: Plan) -> Retry:
    import nopanic as peer

    policy = peer.retry(
        attempts=plan.attempts,
        backoff=peer.backoff.full_jitter(plan.first_delay, cap=plan.longest_delay),
        max_time=plan.time_limit,
        clock=lambda: time.monotonic(),  # noqa: PLW0108 - looked up late, to see virtual time
    )

    async def call(function: Call) -> object:
        async def attempt() -> object:
            return await function()

        return await policy(attempt)()

    return call


RETRIERS = {
    "ours": morgan,
    "tenacity `wait_exponential_jitter`": tenacity_exponential_jitter,
    "tenacity `wait_random_exponential`": tenacity_random_exponential,
    "stamina": stamina,
    "nopanic": nopanic,
}
PACKAGES = {name: "tenacity" for name in RETRIERS if name.startswith("tenacity")}
