import asyncio
from typing import Any

import pytest
import tenacity
from pydantic import ValidationError

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    Event,
    Listeners,
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
    RetryLayer,
    RetryScheduled,
    ServiceError,
    deadline,
    stack,
)
from shared.infrastructure.testing import FakeClock, ScriptedSend

DOWN = ValueError("down")


class Run:
    """A call that fails for ever, with the delays of its retries and what it cost in time."""

    def __init__(self, config: RetryConfig, outcomes: Any = (DOWN,), **options: Any) -> None:
        self.clock = options.pop("clock", None) or FakeClock()
        self.told: list[Event] = []
        self.script = ScriptedSend[Any](outcomes)
        self.limit = options.pop("limit", None)
        self.takes = options.pop("takes", 0.0)
        layer = RetryLayer(
            config, clock=self.clock, listeners=Listeners([self.told.append]), **options
        )
        self._send = stack(self._slow, layer, semantics=PLAIN_CALL)

    @property
    def delays(self) -> list[float]:
        return [event.delay for event in self.told if isinstance(event, RetryScheduled)]

    async def _slow(self, request: str) -> Any:
        await self.clock.sleep(self.takes)
        return await self.script(request)

    async def _call(self) -> Any:
        if self.limit is None:
            return await self._send("x")
        async with deadline(self.limit, clock=self.clock):
            return await self._send("x")

    async def end(self) -> Any:
        task = asyncio.ensure_future(self._call())
        await self.clock.advance(1000.0)
        return (await asyncio.gather(task, return_exceptions=True))[0]


async def test_a_wait_of_tenacity_takes_the_place_of_our_delays() -> None:
    run = Run(RetryConfig(wait=tenacity.wait_incrementing(start=1.5, increment=2.0)))
    assert await run.end() is DOWN
    assert run.delays == [1.5, 3.5, 5.5]


async def test_waits_of_tenacity_may_be_combined_and_chained() -> None:
    steps = [tenacity.wait_fixed(seconds) for seconds in (1, 2)]
    run = Run(RetryConfig(wait=tenacity.wait_chain(*steps) + tenacity.wait_fixed(0.5)))
    await run.end()
    assert run.delays == [1.5, 2.5, 2.5]


async def test_a_wait_of_tenacity_sees_the_error_it_waits_for() -> None:
    def longer_if_busy(error: BaseException) -> float:
        return 7.0 if "busy" in str(error) else 0.5

    outcomes = [ValueError("busy"), ValueError("down"), "fine"]
    run = Run(RetryConfig(wait=tenacity.wait_exception(longer_if_busy)), outcomes)
    assert await run.end() == "fine"
    assert run.delays == [7.0, 0.5]


async def test_a_service_that_asks_for_more_than_a_wait_of_tenacity_gets_it() -> None:
    asks = [ServiceError("a", retry_after=9.0), ServiceError("b", retry_after=0.1), "fine"]
    run = Run(RetryConfig(wait=tenacity.wait_fixed(1)), asks)
    assert await run.end() == "fine"
    assert run.delays == [9.0, 1.0]
    assert [event.reason for event in run.told if isinstance(event, RetryScheduled)] == [
        "retry_after",
        "backoff",
    ]


async def test_a_wait_of_tenacity_beyond_the_deadline_is_not_begun() -> None:
    run = Run(RetryConfig(wait=tenacity.wait_fixed(4)), limit=10.0)
    assert await run.end() is DOWN
    assert run.delays == [4.0, 4.0]


async def test_a_retry_that_waits_by_tenacity_is_paid_for() -> None:
    clock = FakeClock()
    budget = RetryBudget(RetryBudgetConfig(capacity=20, min_retries_per_second=0), clock=clock)
    run = Run(RetryConfig(wait=tenacity.wait_none()), clock=clock, budget=budget)
    await run.end()
    assert (run.delays, budget.tokens) == ([0.0, 0.0], 0.0)


async def test_a_stop_of_tenacity_ends_a_call_before_the_attempts_do() -> None:
    run = Run(RetryConfig(jitter=False, stop=tenacity.stop_after_attempt(2)))
    assert await run.end() is DOWN
    assert len(run.script.requests) == 2


async def test_a_stop_of_tenacity_does_not_make_more_attempts_than_allowed() -> None:
    run = Run(RetryConfig(max_retries=1, stop=tenacity.stop_never))
    await run.end()
    assert len(run.script.requests) == 2


async def test_the_time_of_a_stop_counts_from_the_beginning_of_the_first_attempt() -> None:
    stop = tenacity.stop_after_delay(10)
    config = RetryConfig(max_retries=99, wait=tenacity.wait_none(), stop=stop)
    run = Run(config, takes=3.0)
    await run.end()
    # Attempts end after 3, 6, 9 and 12 seconds.
    assert len(run.script.requests) == 4


async def test_a_stop_of_tenacity_sees_the_wait_that_would_come() -> None:
    stop = tenacity.stop_before_delay(10)
    config = RetryConfig(max_retries=99, wait=tenacity.wait_fixed(2), stop=stop)
    run = Run(config, takes=3.0)
    await run.end()
    # After 3 and 8 seconds; the next would begin after exactly 10.
    assert len(run.script.requests) == 2


async def test_a_call_that_succeeds_asks_neither() -> None:
    def explode(_state: tenacity.RetryCallState) -> float:
        raise AssertionError("asked")

    run = Run(RetryConfig(wait=explode, stop=lambda _: bool(explode(_))), ["fine"])
    assert await run.end() == "fine"


async def test_a_wait_may_be_any_function_of_the_state() -> None:
    run = Run(RetryConfig(wait=lambda state: state.attempt_number * 0.5))
    await run.end()
    assert run.delays == [0.5, 1.0, 1.5]


def test_what_cannot_be_called_is_neither_a_wait_nor_a_stop() -> None:
    for wrong in ({"wait": 3}, {"stop": 3}):
        with pytest.raises(ValidationError, match="should be callable"):
            RetryConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (RetryConfig(), "3 retries, 1 s doubling to 60 s, jitter"),
        (RetryConfig(max_retries=1, exponential_base=3), "1 retry, 1 s x 3 to 60 s, jitter"),
        (RetryConfig(exponential_base=1, jitter=False), "3 retries, 1 s apart"),
        (RetryConfig(wait=tenacity.wait_fixed(2)), "3 retries, wait by wait_fixed"),
        (
            RetryConfig(jitter=False, stop=tenacity.stop_after_delay(9)),
            "3 retries, 1 s doubling to 60 s, stop by stop_after_delay",
        ),
    ],
)
def test_a_retry_layer_says_its_main_numbers_in_one_line(config: RetryConfig, line: str) -> None:
    assert RetryLayer(config).describe() == f"RetryLayer: {line}"
    budget = RetryBudget(RetryBudgetConfig(capacity=50))
    assert RetryLayer(config, budget=budget).describe() == f"RetryLayer: {line}, budget 50 tokens"
