"""What hedging tells, and when it holds off."""

import asyncio
from typing import Any

import pytest

from shared.infrastructure.resilience import (
    Event,
    HedgeConfig,
    HedgeLayer,
    HedgeSkipped,
    LayerOrderWarning,
    Listeners,
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
    RetryLayer,
    Verdict,
    stack,
    trace_call,
)
from shared.infrastructure.resilience.layer import PLAIN_CALL, PlainCall
from shared.infrastructure.testing import FakeClock

AFTER_ONE = HedgeConfig(delay=1.0)


class BusyError(Exception):
    """The service asks for patience, if it says so for `retry_after` seconds."""

    def __init__(self, retry_after: float | None = None) -> None:
        super().__init__("busy")
        self.retry_after = retry_after


class Semantics(PlainCall):
    def judge(self, outcome: object) -> Verdict:
        is_busy = isinstance(outcome, BusyError) or outcome == "busy"
        return Verdict.BUSY if is_busy else super().judge(outcome)

    def repeatable(self, request: object, outcome: object) -> bool:
        return request != "once"

    def describe(self, request: object, outcome: object) -> str:
        return outcome if isinstance(outcome, str) else super().describe(request, outcome)


class Service:
    """Plays (seconds, outcome) one after the other, and counts what it was sent."""

    def __init__(self, clock: FakeClock, *plan: tuple[float, Any]) -> None:
        self.clock = clock
        self.plan = list(plan)
        self.sent = 0

    async def __call__(self, _request: str) -> Any:
        seconds, outcome = self.plan[min(self.sent, len(self.plan) - 1)]
        self.sent += 1
        await self.clock.sleep(seconds)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


async def run(service: Service, layer: HedgeLayer, request: str = "x") -> Any:
    task = asyncio.ensure_future(stack(service, layer, semantics=Semantics())(request))
    await service.clock.advance(10.0)
    return (await asyncio.gather(task, return_exceptions=True))[0]


async def story(service: Service, **options: Any) -> list[str]:
    told: list[Event] = []
    options.setdefault("config", AFTER_ONE)
    layer = HedgeLayer(
        options.pop("config"),
        name="search",
        clock=service.clock,
        listeners=Listeners([told.append]),
        **options,
    )
    with trace_call(clock=service.clock) as trace:
        await run(service, layer)
    assert [entry.event for entry in trace.entries] == told
    return [str(entry).strip() for entry in trace.entries]


@pytest.mark.parametrize(
    ("outcome", "seconds"), [("busy", 1.0), (BusyError(), 1.0), (BusyError(30.0), 30.0)]
)
@pytest.mark.parametrize("first", ["x", "once"])
async def test_after_an_answer_that_asks_for_patience_no_hedge_is_sent_for_as_long(
    outcome: Any, seconds: float, first: str
) -> None:
    clock = FakeClock()
    layer = HedgeLayer(HedgeConfig(delay=0.0), clock=clock)
    service = Service(clock, (0.0, outcome), (5.0, "late"))
    send = stack(service, layer, semantics=Semantics())
    # A first answer that comes in the very turn leaves no time for a hedge.
    await asyncio.gather(asyncio.ensure_future(send(first)), return_exceptions=True)
    sent = service.sent
    clock._now += seconds - 0.001
    task = asyncio.ensure_future(send("x"))
    await clock.advance(0.0)
    assert service.sent == sent + 1
    clock._now += 0.001
    other = asyncio.ensure_future(send("x"))
    await clock.advance(0.0)
    assert service.sent == sent + 3
    await clock.advance(10.0)
    assert await asyncio.gather(task, other) == ["late", "late"]
    assert layer.snapshot()["skipped_count"] == 1


async def test_a_leg_that_lost_is_heeded_too_if_it_asks_for_patience() -> None:
    clock = FakeClock()
    layer = HedgeLayer(AFTER_ONE, clock=clock)
    assert await run(Service(clock, (9.0, "late"), (0.5, BusyError(60.0))), layer) == "late"
    assert await run(Service(clock, (2.0, "late")), layer) == "late"
    assert layer.snapshot() == {
        "delay": 1.0,
        "hedged_count": 1,
        "won_count": 0,
        "skipped_count": 1,
    }


async def test_a_shorter_wish_does_not_shorten_a_longer_one() -> None:
    clock = FakeClock()
    layer = HedgeLayer(AFTER_ONE, clock=clock)
    for wish in (60.0, 0.0):
        await run(Service(clock, (0.0, BusyError(wish))), layer)
    service = Service(clock, (2.0, "late"))
    await run(service, layer)
    assert service.sent == 1


async def test_a_hedge_that_wins_tells_its_story() -> None:
    assert await story(Service(FakeClock(), (9.0, "slow"), (0.5, "quick"))) == [
        "1.000 s  search: hedge sent as attempt 2: no answer within 1 s",
        "1.500 s  search: attempt 2 ok: quick",
        "1.500 s  search: hedge won: the caller gets attempt 2",
    ]


async def test_a_hedge_that_loses_tells_its_story_and_who_paid() -> None:
    clock = FakeClock()
    budget = RetryBudget(RetryBudgetConfig(min_retries_per_second=0), clock=clock)
    service = Service(clock, (2.0, "first"), (0.5, ValueError("down")))
    assert await story(service, budget=budget) == [
        "1.000 s  search: paid 10 of the retry budget, 90 left",
        "1.000 s  search: hedge sent as attempt 2: no answer within 1 s",
        "1.500 s  search: attempt 2 failed: ValueError: down",
        "2.000 s  search: attempt 1 ok: first",
        "2.000 s  search: hedge lost: the caller gets attempt 1",
    ]


@pytest.mark.parametrize(("first", "second", "whose"), [(3.0, 0.5, 2), (1.2, 0.5, 1)])
async def test_if_all_fail_the_caller_is_told_whose_failure_it_gets(
    first: float, second: float, whose: int
) -> None:
    service = Service(FakeClock(), (first, ValueError("a")), (second, ValueError("b")))
    assert (await story(service))[-1].endswith(f"hedge lost: the caller gets attempt {whose}")


async def test_an_answer_in_time_has_nothing_to_tell() -> None:
    assert await story(Service(FakeClock(), (0.5, "first"))) == []


async def test_a_hedge_that_nobody_pays_for_is_told_as_skipped() -> None:
    clock = FakeClock()
    budget = RetryBudget(RetryBudgetConfig(capacity=10, min_retries_per_second=0), clock=clock)
    assert budget.try_acquire()
    assert await story(Service(clock, (2.0, "first")), budget=budget) == [
        "1.000 s  search: no hedge: the retry budget is spent"
    ]
    assert str(HedgeSkipped("search", "busy")) == "no hedge: the service is busy"


async def test_an_outcome_that_cannot_be_read_is_raised_and_hangs_nobody() -> None:
    class Broken(Semantics):
        def describe(self, request: object, outcome: object) -> str:
            raise KeyError("no words")

    clock = FakeClock()
    service = Service(clock, (9.0, "slow"), (0.5, "quick"))
    send = stack(service, HedgeLayer(AFTER_ONE, clock=clock), semantics=Broken())
    task = asyncio.ensure_future(send("x"))
    await clock.advance(2.0)
    with pytest.raises(KeyError, match="no words"):
        await task


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (HedgeConfig(), "1 hedge after p95"),
        (HedgeConfig(delay=0.25, max_hedges=2), "2 hedges after 0.25 s"),
        (HedgeConfig(percentile=0.999), "1 hedge after p99.9"),
    ],
)
def test_a_hedge_layer_says_its_main_numbers_in_one_line(config: HedgeConfig, line: str) -> None:
    assert HedgeLayer(config).describe() == f"HedgeLayer: {line}"
    assert HedgeLayer(config, budget=RetryBudget()).describe() == (
        f"HedgeLayer: {line}, budget 100 tokens"
    )


def test_retry_and_hedge_in_one_stack_are_warned_of() -> None:
    layers = RetryLayer(RetryConfig()), HedgeLayer(HedgeConfig())
    with pytest.warns(LayerOrderWarning, match="attempts multiply: keep one"):
        stack(Service(FakeClock()), *layers, semantics=PLAIN_CALL)
