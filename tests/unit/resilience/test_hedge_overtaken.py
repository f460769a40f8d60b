"""What a leg that lost is told, and who says whether there is room for hedges."""

import asyncio
from typing import Any

import pytest

from shared.infrastructure.resilience import (
    CallRefusedError,
    HedgeConfig,
    HedgeLayer,
    RetryBudget,
    RetryBudgetConfig,
    Verdict,
    stack,
)
from shared.infrastructure.resilience.hedge import OVERTAKEN, UNSENT
from shared.infrastructure.resilience.layer import PLAIN_CALL, PlainCall
from shared.infrastructure.testing import FakeClock


class Replica:
    """Answers each call after its own time, and keeps what a call that is cancelled is told."""

    def __init__(self, clock: FakeClock, *plan: float | tuple[float, Exception]) -> None:
        self.clock = clock
        self.plan = plan
        self.sent = 0
        self.told: dict[int, tuple[Any, ...]] = {}
        self.verdicts: dict[int, Verdict] = {}

    async def __call__(self, _request: object) -> int:
        number, self.sent = self.sent, self.sent + 1
        step = self.plan[number]
        seconds, error = step if isinstance(step, tuple) else (step, None)
        try:
            await self.clock.sleep(seconds)
        except asyncio.CancelledError as exc:
            self.told[number] = exc.args
            self.verdicts[number] = PLAIN_CALL.judge(exc)
            raise
        if error is not None:
            raise error
        return number


def hedged(replica: Replica, **options: Any) -> tuple[asyncio.Task[Any], HedgeLayer]:
    config = options.pop("config", HedgeConfig(delay=1.0))
    semantics = options.pop("semantics", PLAIN_CALL)
    layer = HedgeLayer(config, clock=replica.clock, **options)
    call = stack(replica, layer, semantics=semantics)

    async def run() -> Any:
        return await call("x")

    return asyncio.create_task(run()), layer


@pytest.mark.parametrize(
    ("plan", "winner", "told"),
    [
        ((9.0, 1.0), 1, {0: (OVERTAKEN,)}),
        ((1.5, 9.0), 0, {1: ()}),
        ((9.0, 9.0, 1.0), 2, {0: (OVERTAKEN,), 1: (OVERTAKEN,)}),
        ((9.0, 1.5, 9.0), 1, {0: (OVERTAKEN,), 2: ()}),
    ],
)
async def test_a_leg_is_told_when_a_later_one_overtook_it(
    plan: tuple[float, ...], winner: int, told: dict[int, tuple[Any, ...]]
) -> None:
    replica = Replica(FakeClock(), *plan)
    task, _ = hedged(replica, config=HedgeConfig(delay=1.0, max_hedges=2))
    await replica.clock.advance(5.0)
    assert (await task, replica.told) == (winner, told)


async def test_where_nobody_knows_hosts_an_overtaken_leg_says_nothing() -> None:
    replica = Replica(FakeClock(), 9.0, 1.0)
    task, _ = hedged(replica)
    await replica.clock.advance(5.0)
    assert await task == 1
    assert replica.verdicts == {0: Verdict.VOID}


async def test_a_caller_who_leaves_overtakes_nobody_and_all_legs_end_within_a_tick() -> None:
    replica = Replica(FakeClock(), 9.0, 9.0)
    task, _ = hedged(replica)
    await replica.clock.advance(2.0)
    assert replica.sent == 2
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (task.cancelled(), replica.told) == (True, {0: (), 1: ()})


async def test_failures_of_all_legs_overtake_nobody() -> None:
    replica = Replica(FakeClock(), (3.0, KeyError("first")), (1.0, KeyError("second")))
    task, _ = hedged(replica)
    await replica.clock.advance(5.0)
    with pytest.raises(KeyError, match="second"):
        await task
    assert replica.told == {}


async def test_no_hedge_is_sent_while_there_is_no_room_for_it() -> None:
    replica = Replica(FakeClock(), 3.0)
    task, layer = hedged(replica, may_hedge=lambda _request: False)
    await replica.clock.advance(5.0)
    assert await task == 0
    assert (replica.sent, layer.snapshot()["skipped_count"]) == (1, 1)


async def test_who_knows_of_room_is_believed_whatever_one_answer_asked_for() -> None:
    class Busy(PlainCall):
        def judge(self, outcome: object) -> Verdict:
            return Verdict.BUSY if isinstance(outcome, KeyError) else super().judge(outcome)

    replica = Replica(FakeClock(), (0.0, KeyError("busy")), 9.0, 0.5)
    layer = HedgeLayer(HedgeConfig(delay=1.0), may_hedge=lambda _request: True, clock=replica.clock)
    call = stack(replica, layer, semantics=Busy())
    with pytest.raises(KeyError):
        await call("x")

    async def run() -> Any:
        return await call("x")

    task = asyncio.create_task(run())
    await replica.clock.advance(2.0)
    assert await task == 2


@pytest.mark.parametrize("end", ["waits", "refused", "not begun"])
async def test_a_hedge_that_was_never_sent_neither_counts_nor_costs(end: str) -> None:
    clock, answered, sent = FakeClock(), asyncio.Event(), list[int]()
    config = RetryBudgetConfig(capacity=100.0, min_retries_per_second=0.0)
    budget = RetryBudget(config, clock=clock)

    async def send(_request: object) -> int:
        sent.append(len(sent))
        if sent[-1] == 0:
            await answered.wait()
            return 0
        try:
            await clock.sleep(9.0)
        except asyncio.CancelledError as exc:
            if end == "refused":
                raise CallRefusedError("no room") from None
            vars(exc)[UNSENT] = True
            raise
        return 1

    def may_hedge(_request: object) -> bool:
        if end == "not begun":
            answered.set()
        return True

    after_one = HedgeConfig(delay=1.0)
    layer = HedgeLayer(after_one, budget=budget, may_hedge=may_hedge, clock=clock, pays_in=False)
    task = asyncio.create_task(_as_coroutine(stack(send, layer, semantics=PLAIN_CALL)("x")))
    await clock.advance(2.0)
    assert sent == ([0] if end == "not begun" else [0, 1])
    answered.set()
    assert await task == 0
    await clock.advance(0.0)
    assert (layer.snapshot()["hedged_count"], budget.tokens) == (0, 100.0)


async def test_whether_a_request_may_be_sent_again_is_asked_before_each_hedge() -> None:
    class Once(PlainCall):
        left = 2

        def repeatable(self, request: object, outcome: object) -> bool:
            self.left -= 1
            return self.left >= 0

    replica = Replica(FakeClock(), 9.0, 9.0, 9.0)
    config = HedgeConfig(delay=1.0, max_hedges=2)
    task, layer = hedged(replica, config=config, semantics=Once())
    await replica.clock.advance(20.0)
    assert await task == 0
    assert (replica.sent, layer.snapshot()["skipped_count"]) == (2, 0)


async def _as_coroutine(awaitable: Any) -> Any:
    return await awaitable


@pytest.mark.parametrize(("pays_in", "tokens"), [(True, 91.0), (False, 90.0)])
async def test_below_a_layer_that_pays_in_it_does_not(pays_in: bool, tokens: float) -> None:
    clock = FakeClock()
    config = RetryBudgetConfig(capacity=100.0, min_retries_per_second=0.0)
    budget = RetryBudget(config, clock=clock)
    task, _ = hedged(Replica(clock, 9.0, 1.0), budget=budget, pays_in=pays_in)
    await clock.advance(5.0)
    assert await task == 1
    assert budget.tokens == tokens
