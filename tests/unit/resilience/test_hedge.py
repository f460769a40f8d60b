import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.infrastructure.resilience import (
    AttemptTimeoutError,
    CircuitOpenError,
    HedgeConfig,
    HedgeLayer,
    Verdict,
    deadline,
    remaining_time,
    stack,
)
from shared.infrastructure.resilience.histogram import RotatingHistogram
from shared.infrastructure.resilience.layer import PlainCall
from shared.infrastructure.resilience.retry_budget import RetryBudget, RetryBudgetConfig
from shared.infrastructure.testing import FakeClock


class Reply:
    def __init__(self, name: str, verdict: Verdict = Verdict.OK) -> None:
        self.name = name
        self.verdict = verdict
        self.discarded = 0


class ReplySemantics(PlainCall):
    def __init__(self) -> None:
        self.may_repeat = True
        self.asked: list[object] = []

    def judge(self, outcome: object) -> Verdict:
        return outcome.verdict if isinstance(outcome, Reply) else super().judge(outcome)

    def repeatable(self, request: object, outcome: object) -> bool:
        self.asked.append(outcome)
        return self.may_repeat

    async def discard(self, response: Any) -> None:
        await asyncio.sleep(0)  # a discard that is cancelled half-way counts for nothing
        response.discarded += 1


class Legs:
    """A service whose n-th call ends after its own time, with its own outcome."""

    def __init__(self, clock: FakeClock, *plan: tuple[float, Any], stubborn: bool = False) -> None:
        self.clock = clock
        self.plan = plan
        self.stubborn = stubborn
        self.sent_at: list[float] = []
        self.running = 0
        self.cancelled = 0
        self.replies: list[Reply] = []

    async def __call__(self, _request: str) -> Any:
        seconds, outcome = self.plan[min(len(self.sent_at), len(self.plan) - 1)]
        self.sent_at.append(self.clock.now() - 1000.0)
        self.running += 1
        try:
            await self.clock.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            if not self.stubborn:
                raise
        finally:
            self.running -= 1
        if isinstance(outcome, BaseException):
            raise outcome
        if isinstance(outcome, Reply):
            self.replies.append(outcome)
        return outcome


AFTER_ONE = HedgeConfig(delay=1.0)
A, B = "a", "b"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}


async def hedged(
    legs: Legs, config: HedgeConfig = AFTER_ONE, **options: Any
) -> tuple[Any, HedgeLayer, float]:
    layer = HedgeLayer(config, clock=legs.clock, **options)
    task = asyncio.ensure_future(stack(legs, layer, semantics=ReplySemantics())("x"))
    began = legs.clock.now()
    while not task.done():
        await legs.clock.advance(0.125)
    elapsed = legs.clock.now() - began
    await legs.clock.advance(10.0)
    assert legs.running == 0
    assert legs.clock.pending == 0
    try:
        return await task, layer, elapsed
    except Exception as exc:
        return exc, layer, elapsed


def counts(layer: HedgeLayer) -> tuple[int, int]:
    snapshot = layer.snapshot()
    return snapshot["hedged_count"], snapshot["won_count"]


async def test_a_call_answered_in_time_is_sent_once(clock: FakeClock) -> None:
    legs = Legs(clock, (0.5, A))
    outcome, layer, elapsed = await hedged(legs)
    assert (outcome, elapsed, counts(layer)) == (A, 0.5, (0, 0))
    assert legs.sent_at == [0.0]


async def test_a_late_first_answer_still_wins_if_it_is_first(clock: FakeClock) -> None:
    legs = Legs(clock, (1.5, A), (5.0, B))
    outcome, layer, elapsed = await hedged(legs)
    assert (outcome, elapsed, counts(layer)) == (A, 1.5, (1, 0))
    assert (legs.sent_at, legs.cancelled) == ([0.0, 1.0], 1)


async def test_a_hedge_that_answers_first_wins_and_the_slow_leg_is_cancelled(
    clock: FakeClock,
) -> None:
    legs = Legs(clock, (9.0, A), (0.5, B))
    outcome, layer, elapsed = await hedged(legs)
    assert (outcome, elapsed, counts(layer)) == (B, 1.5, (1, 1))
    assert legs.cancelled == 1


async def test_further_hedges_go_one_delay_apart_up_to_the_maximum(clock: FakeClock) -> None:
    legs = Legs(clock, (9.0, A), (9.0, A), (9.0, A), (9.0, B))
    config = HedgeConfig(delay=1.0, max_hedges=2)
    outcome, layer, elapsed = await hedged(legs, config)
    assert (outcome, elapsed, counts(layer)) == (A, 9.0, (2, 0))
    assert legs.sent_at == [0.0, 1.0, 2.0]


async def test_a_failure_before_the_delay_is_passed_on_at_once(clock: FakeClock) -> None:
    error = ValueError("down")
    legs = Legs(clock, (0.5, error), (0.0, B))
    outcome, layer, elapsed = await hedged(legs)
    assert (outcome, elapsed, counts(layer)) == (error, 0.5, (0, 0))


@pytest.mark.parametrize("first_fails", [True, False])
async def test_a_failed_leg_waits_for_the_other(clock: FakeClock, first_fails: bool) -> None:
    bad, good = (1.5, ValueError("down")), (4.0, A)
    legs = Legs(clock, bad, good) if first_fails else Legs(clock, good, (0.5, bad[1]))
    outcome, layer, _ = await hedged(legs, HedgeConfig(delay=1.0, max_hedges=3))
    assert outcome == A
    assert len(legs.sent_at) == 2  # a failure is no reason to send more
    assert counts(layer) == (1, int(first_fails))


async def test_if_all_legs_fail_the_first_failure_is_the_outcome(clock: FakeClock) -> None:
    errors = ValueError("slow"), ValueError("quick")
    outcome, layer, elapsed = await hedged(Legs(clock, (3.0, errors[0]), (0.5, errors[1])))
    assert (outcome, elapsed, counts(layer)) == (errors[1], 3.0, (1, 0))


async def test_a_failed_answer_that_nobody_gets_is_discarded_once(clock: FakeClock) -> None:
    bad, worse, good = (Reply(name, Verdict.FAILED) for name in "123")
    good.verdict = Verdict.OK
    assert (await hedged(Legs(clock, (1.5, bad), (2.0, good))))[0] is good
    assert (bad.discarded, good.discarded) == (1, 0)
    bad.discarded = 0
    assert (await hedged(Legs(clock, (1.5, bad), (2.0, worse))))[0] is bad
    assert (bad.discarded, worse.discarded) == (0, 1)


async def test_a_loser_that_answers_nevertheless_is_discarded(clock: FakeClock) -> None:
    slow, quick = Reply("slow"), Reply("quick")
    legs = Legs(clock, (9.0, slow), (0.5, quick), stubborn=True)
    outcome, _, _ = await hedged(legs)
    assert outcome is quick
    assert (slow.discarded, quick.discarded) == (1, 0)


async def test_a_loser_that_cannot_be_discarded_is_a_note_in_the_log_and_no_more(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "shared.infrastructure.resilience.hedge")
    unable = Reply("unable", Verdict.FAILED)
    del unable.discarded  # so that discarding it raises
    assert (await hedged(Legs(clock, (1.5, unable), (2.0, A))))[0] == A
    assert [record.message for record in caplog.records] == ["discarding an unwanted answer failed"]


async def test_two_answers_in_the_same_instant_make_one_winner_and_one_discarded(
    clock: FakeClock,
) -> None:
    first, second = Reply("first"), Reply("second")
    legs = Legs(clock, (2.0, first), (1.0, second), stubborn=True)
    outcome, _, _ = await hedged(legs)
    loser = second if outcome is first else first
    assert (outcome.discarded, loser.discarded) == (0, 1)


async def test_a_hedge_that_we_refuse_ourselves_is_ignored_and_costs_nothing(
    clock: FakeClock,
) -> None:
    budget = RetryBudget(RetryBudgetConfig(min_retries_per_second=0), clock=clock)
    error = ValueError("down")
    for outcome in (A, error):
        legs = Legs(clock, (3.0, outcome), (0.0, CircuitOpenError("open")))
        got, layer, _ = await hedged(legs, budget=budget)
        assert (got, counts(layer)) == (outcome, (0, 0))
    assert budget.tokens == 100.0


async def test_a_hedge_is_sent_only_if_the_budget_pays_for_it(clock: FakeClock) -> None:
    config = RetryBudgetConfig(capacity=10, min_retries_per_second=0, success_refund=1)
    budget = RetryBudget(config, clock=clock)
    both = [await hedged(Legs(clock, (5.0, A), (0.5, B)), budget=budget) for _ in range(2)]
    assert [outcome for outcome, _, _ in both] == [B, A]
    assert budget.tokens == 2.0


async def test_what_must_not_be_sent_twice_is_not(clock: FakeClock) -> None:
    semantics, legs = ReplySemantics(), Legs(clock, (5.0, A), (0.0, B))
    semantics.may_repeat = False
    task = asyncio.ensure_future(
        stack(legs, HedgeLayer(AFTER_ONE, clock=clock), semantics=semantics)("x")
    )
    await clock.advance(5.0)
    assert (await task, len(legs.sent_at)) == (A, 1)
    assert [type(outcome) for outcome in semantics.asked] == [AttemptTimeoutError]


async def test_a_hedge_is_bound_by_the_deadline_of_its_caller(clock: FakeClock) -> None:
    seen: list[float | None] = []

    async def service(_request: str) -> str:
        seen.append(remaining_time())
        await clock.sleep(0.0 if len(seen) > 1 else 9.0)
        return A

    async def call() -> str:
        async with deadline(4.0, clock=clock):
            layer = HedgeLayer(AFTER_ONE, clock=clock)
            return await stack(service, layer, semantics=ReplySemantics())("x")

    task = asyncio.create_task(call())
    await clock.advance(2.0)
    assert await task == A
    assert seen == [4.0, 3.0]


async def test_a_leg_cancelled_from_below_ends_the_call_like_a_direct_one(clock: FakeClock) -> None:
    legs = Legs(clock, (0.5, asyncio.CancelledError()))
    task = asyncio.ensure_future(
        stack(legs, HedgeLayer(AFTER_ONE, clock=clock), semantics=ReplySemantics())("x")
    )
    await clock.advance(1.0)
    assert task.cancelled()


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("plan", [((3, "OK"), (2, "OK")), ((2, "FAILED"), (2, "OK"))])
async def test_a_cancelled_caller_leaves_no_leg_and_no_answer_behind(
    clock: FakeClock, plan: Any, stubborn: bool
) -> None:
    class TurnClock(FakeClock):
        """Time that is counted in turns of the loop."""

        async def sleep(self, seconds: float) -> None:
            for _ in range(int(seconds)):
                await asyncio.sleep(0)

        def call_later(self, seconds: float, callback: Any) -> Any:
            return asyncio.get_running_loop().call_soon(callback)

    cancelled = 0
    for turn in range(14):
        outcomes = [(seconds, Reply(str(seconds), Verdict[name])) for seconds, name in plan]
        legs = Legs(TurnClock(), *outcomes, stubborn=stubborn)
        layer = HedgeLayer(HedgeConfig(delay=1.0), clock=legs.clock)
        task = asyncio.ensure_future(stack(legs, layer, semantics=ReplySemantics())("x"))
        for _ in range(turn):
            await asyncio.sleep(0)
        task.cancel()
        result = (await asyncio.gather(task, return_exceptions=True))[0]
        for _ in range(20):
            await asyncio.sleep(0)
        assert (legs.running, layer._tasks) == (0, set())
        assert all(reply.discarded == (reply is not result) for reply in legs.replies)
        cancelled += isinstance(result, asyncio.CancelledError)
    assert 3 < cancelled < 14


async def test_the_adaptive_delay_waits_for_enough_samples_and_then_follows_the_percentile(
    clock: FakeClock,
) -> None:
    config = HedgeConfig(min_samples=10, percentile=0.9)
    layer = HedgeLayer(config, clock=clock)
    legs = Legs(clock, *[(0.25, A)] * 9, (8.0, A), (8.0, A), (0.25, B))
    send = stack(legs, layer, semantics=ReplySemantics())
    for _ in range(10):
        assert layer.snapshot()["delay"] is None
        task = asyncio.ensure_future(send("x"))
        await clock.advance(8.0 if len(legs.sent_at) == 9 else 0.25)
        assert await task == A
    delay = layer.snapshot()["delay"]
    assert 0.25 <= delay <= 0.25 * 1.1
    task = asyncio.ensure_future(send("x"))
    await clock.advance(delay + 0.25)
    assert await task == B


def test_the_histogram_answers_within_ten_percent_and_forgets_by_halves() -> None:
    clock = FakeClock()
    histogram = RotatingHistogram(60.0, clock=clock)
    assert histogram.percentile(0.5) is None
    for number in range(1, 101):
        histogram.record(number / 100)
    for share in (0.01, 0.5, 0.95, 0.99):
        found = histogram.percentile(share, min_samples=100)
        assert found is not None
        assert share * (1 - 1e-9) <= found <= share * 1.1
    assert histogram.percentile(0.5, min_samples=101) is None
    clock._now += 31.0
    histogram.record(5.0)
    assert histogram.percentile(0.5, min_samples=101) is not None
    clock._now += 29.0
    found = histogram.percentile(0.5)
    assert found is not None
    assert math.isclose(found, 5.0, rel_tol=0.1)
    histogram.record(5.0)
    clock._now += 60.0
    assert histogram.percentile(0.5) is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e300])
def test_the_histogram_takes_absurd_latencies_without_growing(seconds: float) -> None:
    histogram = RotatingHistogram(60.0, clock=FakeClock())
    histogram.record(seconds)
    found = histogram.percentile(0.5)
    assert found is not None
    assert 1e-6 <= found <= 1.1e6
