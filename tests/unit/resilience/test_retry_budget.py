import asyncio
import random
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydantic import ValidationError

from shared.infrastructure.resilience import (
    BudgetSpent,
    CircuitOpenError,
    Event,
    Listeners,
    RetryConfig,
    RetryGivenUp,
    RetryLayer,
    stack,
)
from shared.infrastructure.resilience.layer import PLAIN_CALL, PlainCall, Verdict
from shared.infrastructure.resilience.retry_budget import (
    RetryBudget,
    RetryBudgetConfig,
    budget_of,
)
from shared.infrastructure.testing import FakeClock, ScriptedSend

TWO_RETRIES = RetryBudgetConfig(capacity=20, min_retries_per_second=0)
NO_JITTER = RetryConfig(jitter=False)


def retrying(script: Any, budget: RetryBudget, clock: FakeClock, **options: Any) -> Any:
    config = options.pop("config", NO_JITTER)
    semantics = options.pop("semantics", PLAIN_CALL)
    return stack(
        script, RetryLayer(config, budget=budget, clock=clock, **options), semantics=semantics
    )


async def finish(clock: FakeClock, call: Any) -> Any:
    task = asyncio.ensure_future(call)
    await clock.advance(1000.0)
    return await task


def test_a_budget_that_no_retry_fits_in_is_refused() -> None:
    for field in ("cost", "throttle_cost"):
        with pytest.raises(ValidationError, match="no retry would fit"):
            RetryBudgetConfig(**{"capacity": 20, field: 20.5})
        assert RetryBudgetConfig(**{"capacity": 20, field: 20})


def test_time_alone_pays_for_the_floor_and_never_beyond_the_capacity() -> None:
    clock = FakeClock()
    budget = RetryBudget(RetryBudgetConfig(min_retries_per_second=2), clock=clock)
    assert sum(budget.try_acquire() for _ in range(50)) == 10
    clock._now += 0.45
    assert not budget.try_acquire()
    clock._now += 0.05
    assert budget.try_acquire()
    assert not budget.try_acquire()
    clock._now += 3600.0
    assert budget.snapshot() == {
        "tokens": 100.0,
        "capacity": 100.0,
        "spent_count": 11,
        "refused_count": 42,
    }


async def test_without_budget_the_last_error_stands_and_a_note_says_why() -> None:
    clock = FakeClock()
    budget = RetryBudget(TWO_RETRIES, clock=clock)
    script = ScriptedSend([ValueError(str(number)) for number in range(4)])
    with pytest.raises(ValueError, match="2") as caught:
        await finish(clock, retrying(script, budget, clock, name="search")("x"))
    assert len(script.requests) == 3
    assert caught.value.__notes__ == ["search: gave up: the retry budget is spent"]


async def test_every_success_pays_in_once_whether_it_was_retried_or_not() -> None:
    clock = FakeClock()
    budget = RetryBudget(TWO_RETRIES, clock=clock)
    send = retrying(ScriptedSend([ValueError(), "late", "at once"]), budget, clock)
    assert await finish(clock, send("x")) == "late"
    assert budget.tokens == 11.0
    assert await finish(clock, send("x")) == "at once"
    assert budget.tokens == 12.0


async def test_a_call_that_may_not_be_retried_costs_nothing() -> None:
    clock = FakeClock()
    budget = RetryBudget(TWO_RETRIES, clock=clock)
    send = retrying(ScriptedSend([ValueError()]), budget, clock, config=RetryConfig(max_retries=0))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the notes are what is checked
        await finish(clock, send("x"))
    assert not hasattr(caught.value, "__notes__")
    assert budget.snapshot()["spent_count"] == 0


async def test_an_answer_that_asks_for_patience_costs_the_smaller_sum() -> None:
    class Busy(PlainCall):
        def judge(self, outcome: object) -> Verdict:
            return Verdict.BUSY if outcome == "busy" else super().judge(outcome)

    clock = FakeClock()
    budget = RetryBudget(TWO_RETRIES, clock=clock)
    config = RetryConfig(max_retries=9, retry_busy=True)
    script = ScriptedSend(["busy"])
    send = retrying(script, budget, clock, config=config, semantics=Busy())
    assert await finish(clock, send("x")) == "busy"
    assert len(script.requests) == 1 + 4
    assert budget.tokens == 0.0


async def test_a_retry_is_paid_when_scheduled_and_given_back_when_its_wait_is_cancelled() -> None:
    clock = FakeClock()
    budget = RetryBudget(TWO_RETRIES, clock=clock)
    task = asyncio.ensure_future(retrying(ScriptedSend([ValueError()]), budget, clock)("x"))
    await clock.advance(0.5)
    assert budget.tokens == 10.0
    task.cancel()
    await asyncio.wait([task])
    assert budget.tokens == 20.0


async def test_a_retry_that_is_cancelled_under_way_stays_paid() -> None:
    async def fail_then_hang(_request: str) -> None:
        if clock.now() > 1000.0:
            await asyncio.get_running_loop().create_future()
        raise ValueError

    clock = FakeClock()
    budget = RetryBudget(TWO_RETRIES, clock=clock)
    task = asyncio.ensure_future(retrying(fail_then_hang, budget, clock)("x"))
    await clock.advance(1.5)
    task.cancel()
    await asyncio.wait([task])
    assert budget.tokens == 10.0


async def test_a_retry_that_we_refuse_ourselves_costs_nothing() -> None:
    clock = FakeClock()
    budget = RetryBudget(TWO_RETRIES, clock=clock)
    script = ScriptedSend([ValueError(), CircuitOpenError("open")])
    with pytest.raises(CircuitOpenError):
        await finish(clock, retrying(script, budget, clock)("x"))
    assert budget.tokens == 20.0


async def test_an_outage_is_never_answered_with_a_storm_and_healing_restores_the_budget() -> None:
    clock = FakeClock()
    budget = RetryBudget(clock=clock)
    attempts, healed = 0, False

    async def upstream(_request: int) -> str:
        nonlocal attempts
        attempts += 1
        if not healed:
            raise ValueError("down")
        return "ok"

    config = RetryConfig(base_delay=0.1, max_delay=2.0)
    send = retrying(upstream, budget, clock, config=config, rng=random.Random(5))

    async def offer(seconds: int) -> list[Any]:
        calls = []
        for _ in range(seconds * 10):
            calls += [asyncio.ensure_future(send(number)) for number in range(20)]
            await clock.advance(0.1)
        await clock.advance(20.0)
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = await offer(60)
    offered, retries = len(outcomes), attempts - len(outcomes)
    assert offered == 12_000
    # Capacity for ten, one a second from the floor, and nobody pays in: 200 a second see one more.
    assert 60 <= retries <= 10 + 61
    assert sum(hasattr(error, "__notes__") for error in outcomes) > 11_900

    healed = True
    assert await offer(1) == ["ok"] * 200
    assert budget.tokens == 100.0


def test_a_budget_is_given_as_it_is_or_made_from_its_config() -> None:
    given, clock = RetryBudget(), FakeClock()
    assert budget_of(given) is given
    assert budget_of(None) is None
    made = budget_of(TWO_RETRIES, clock=clock)
    assert made is not None
    assert (made.config, made.tokens) == (TWO_RETRIES, 20.0)
    assert made.try_acquire()
    clock._now += 1000.0
    assert made.tokens == 10.0


async def test_a_retry_that_is_paid_for_is_told_with_its_price() -> None:
    clock, told = FakeClock(), list[Event]()
    budget = RetryBudget(TWO_RETRIES, clock=clock)
    listeners = Listeners([told.append])
    send = retrying(ScriptedSend([ValueError()]), budget, clock, name="a", listeners=listeners)
    with pytest.raises(ValueError):  # noqa: PT011 - what was told is what is checked
        await finish(clock, send("x"))
    assert [event for event in told if isinstance(event, BudgetSpent)] == [
        BudgetSpent("a", cost=10.0, tokens=10.0),
        BudgetSpent("a", cost=10.0, tokens=0.0),
    ]
    assert told[-1] == RetryGivenUp("a", 3, "budget")


class BudgetMachine(RuleBasedStateMachine):
    """A budget keeps to its books: what was there, came in and was given back, less what went."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(0.0)
        # Every number is a power of two, so that sums of floats are exact.
        self.config = RetryBudgetConfig(
            capacity=32, cost=8, throttle_cost=4, success_refund=0.5, min_retries_per_second=0.25
        )
        self.budget = RetryBudget(self.config, clock=self.clock)
        self.expected = 32.0
        self.unsent: list[bool] = []

    def add(self, tokens: float) -> None:
        self.expected = min(32.0, self.expected + tokens)

    @rule(throttled=st.booleans())
    def acquire(self, throttled: bool) -> None:
        cost = 4.0 if throttled else 8.0
        granted = self.budget.try_acquire(throttled=throttled)
        assert granted == (self.expected >= cost)
        if granted:
            self.expected -= cost
            self.unsent.append(throttled)

    @precondition(lambda self: self.unsent)
    @rule()
    def refund(self) -> None:
        throttled = self.unsent.pop()
        self.budget.refund(throttled=throttled)
        self.add(4.0 if throttled else 8.0)

    @rule()
    def succeed(self) -> None:
        self.budget.succeed()
        self.add(0.5)

    @rule(quarters=st.integers(0, 40))
    def wait(self, quarters: int) -> None:
        self.clock._now += quarters / 4
        self.add(quarters / 4 * 2.0)

    @invariant()
    def books_balance(self) -> None:
        assert self.budget.tokens == self.expected
        assert 0.0 <= self.budget.tokens <= 32.0


TestBudgetMachine = BudgetMachine.TestCase
