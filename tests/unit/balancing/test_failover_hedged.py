"""Hedging between failover and balancing: another host, one budget, and evidence of silence."""

import asyncio
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.call import ATTEMPT, Attempt, Call
from shared.infrastructure.balancing.classify import fault_of, note_silence
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.balancing.hedging import PoolHedge
from shared.infrastructure.balancing.semantics import is_hedgeable
from shared.infrastructure.http import ReadFailedError
from shared.infrastructure.resilience import HedgeConfig, RetryBudget, RetryBudgetConfig
from shared.infrastructure.resilience.hedge import OVERTAKEN
from tests.unit.balancing.scripted_hosts import Fleet, Run, call_for, request_of, saying

AFTER_ONE = HedgeConfig(delay=1.0)
SILENT = (60.0, 200)


def hedged(fleet: Fleet, config: HedgeConfig = AFTER_ONE, **options: Any) -> tuple[Run, PoolHedge]:
    budget = options.get("budget")
    may_hedge = options.pop("may_hedge", lambda _call: True)
    hedge = PoolHedge(config, budget=budget, may_hedge=may_hedge, clock=fleet.clock)
    return Run(fleet, below=[hedge], **options), hedge


async def test_a_late_call_goes_to_another_host_and_the_first_answer_counts() -> None:
    fleet = Fleet(a=SILENT, b=(0.5, 200), c=200)
    run, hedge = hedged(fleet)
    await run.done()
    assert (fleet.sent, run.took) == ([(0.0, "a"), (1.0, "b")], 1.5)
    assert run.outcome.extensions[ATTEMPT] is run.call.answered_by is run.call.attempts[1]
    assert [attempt.is_hedge for attempt in run.call.attempts] == [False, True]
    assert (fleet.running, hedge.snapshot()["won_count"]) == (0, 1)


async def test_silence_that_was_overtaken_speaks_against_its_host() -> None:
    fleet = Fleet(a=SILENT, b=200)
    await hedged(fleet)[0].done()
    assert sorted(fleet.verdicts) == [("a", "failed"), ("b", "ok")]


async def test_a_hedge_that_lost_says_nothing_of_its_host() -> None:
    fleet = Fleet(a=(1.5, 200), b=SILENT)
    run, hedge = hedged(fleet)
    await run.done()
    assert run.outcome.extensions[ATTEMPT].host == "a"
    assert sorted(fleet.verdicts) == [("a", "ok"), ("b", "void")]
    assert (hedge.snapshot()["hedged_count"], hedge.snapshot()["won_count"]) == (1, 0)


async def test_a_caller_who_leaves_says_nothing_of_any_host() -> None:
    fleet = Fleet(a=SILENT, b=SILENT)
    run, _ = hedged(fleet)
    task = run.start()
    await fleet.clock.advance(2.0)
    assert fleet.running == 2
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (task.cancelled(), fleet.running) == (True, 0)
    assert fleet.verdicts == [("a", "void"), ("b", "void")]
    assert run.call.busy == set()


async def test_where_there_is_no_other_host_the_first_goes_on() -> None:
    budget = RetryBudget(RetryBudgetConfig(capacity=100.0, min_retries_per_second=0.0))
    fleet = Fleet(a=(3.0, 200))
    run, hedge = hedged(fleet, budget=budget)
    await run.done()
    assert (fleet.hosts, run.took, run.outcome.status_code) == (["a"], 3.0, 200)
    assert (budget.tokens, hedge.snapshot()["hedged_count"]) == (100.0, 0)


async def test_when_both_legs_fail_another_host_is_asked() -> None:
    fleet = Fleet(a=(2.0, ReadFailedError("reset")), b=(0.5, 500), c=200)
    run, _ = hedged(fleet)
    await run.done()
    assert (fleet.hosts, run.outcome.status_code) == (["a", "b", "c"], 200)
    assert len(run.call.attempts) == 3


async def test_each_leg_tells_of_its_own_host() -> None:
    fleet = Fleet(a=(2.0, ReadFailedError("reset")), b=(0.5, saying(503, {})))
    run, _ = hedged(fleet, call=call_for(max_attempts=2))
    await run.done()
    outcomes = [event.to_dict()["outcome"] for event in run.told if event.kind == "attempt_ended"]
    assert outcomes == ["b: 503"]
    assert run.outcome.extensions[ATTEMPT].host == "b"  # which failed first


async def test_hedges_and_further_attempts_have_one_budget_into_which_a_call_pays_once() -> None:
    budget = RetryBudget(RetryBudgetConfig(capacity=100.0, min_retries_per_second=0.0))
    fleet = Fleet(a=500, b=SILENT, c=200)
    run, _ = hedged(fleet, budget=budget)
    await run.done()
    assert fleet.hosts == ["a", "b", "c"]
    assert budget.tokens == 100.0 - 10.0 - 10.0 + 1.0


async def test_a_host_that_asks_for_patience_is_nothing_against_hedges_elsewhere() -> None:
    wait = lambda: httpx.Response(429, headers={"retry-after": "3600"})  # noqa: E731
    fleet = Fleet(a=wait, b=SILENT, c=200)
    run, _ = hedged(fleet)
    await run.done()
    assert (fleet.sent, run.outcome.status_code) == ([(0.0, "a"), (0.0, "b"), (1.0, "c")], 200)


async def test_a_busy_fleet_gets_no_hedges() -> None:
    fleet = Fleet(a=(3.0, 200), b=200)
    run, hedge = hedged(fleet, may_hedge=lambda _call: False)
    await run.done()
    assert (fleet.hosts, hedge.snapshot()["skipped_count"]) == (["a"], 1)


@pytest.mark.parametrize(
    ("payload", "may"),
    [
        ({}, True),
        ({"tools": []}, True),
        ({"tools": [{"type": "function"}]}, False),
        ({"functions": [{"name": "f"}]}, False),
        ({"store": True}, False),
        ({"store": False}, True),
        ({"background": True}, False),
    ],
)
async def test_what_may_have_effects_is_sent_once(payload: dict[str, Any], may: bool) -> None:
    call = call_for(payload=payload)
    assert is_hedgeable(request_of(call)) is may
    fleet = Fleet(a=(3.0, 200), b=200)
    await hedged(fleet, call=call)[0].done()
    assert fleet.hosts == (["a", "b"] if may else ["a"])


async def test_hedges_are_attempts_of_which_a_call_may_take_so_many() -> None:
    fleet = Fleet(a=SILENT, b=SILENT, c=SILENT, d=SILENT)
    run, hedge = hedged(fleet, HedgeConfig(delay=1.0, max_hedges=3), call=call_for(max_attempts=2))
    task = run.start()
    await fleet.clock.advance(10.0)
    assert (fleet.hosts, hedge.snapshot()["hedged_count"]) == (["a", "b"], 1)
    task.cancel()
    await fleet.clock.advance(0.0)


async def test_who_says_whether_there_is_room_is_told_of_the_call() -> None:
    fleet, told = Fleet(a=(3.0, 200), b=200), list[Call]()

    def may_hedge(call: Call) -> bool:
        told.append(call)
        return False

    run, _ = hedged(fleet, may_hedge=may_hedge)
    await run.done()
    assert (fleet.hosts, told) == (["a"], [run.call])


async def test_a_leg_that_lost_its_race_leaves_its_host_to_a_restart() -> None:
    fleet = Fleet(a=(1.5, 200), b=(9.0, 200))
    run, _ = hedged(fleet)
    await run.done()
    assert (fleet.hosts, run.outcome.extensions[ATTEMPT].host) == (["a", "b"], "a")
    assert (run.call.is_fresh("a"), run.call.is_fresh("b")) == (False, True)
    assert await run.failover.pause(run.call)  # at once: no clock has to move


def test_an_attempt_that_is_ended_by_us_leaves_its_host_what_it_had_left() -> None:
    call = call_for()
    for fault, left in ((Fault.THROTTLED, 2), (Fault.OURS, 2), (Fault.THROTTLED, 1)):
        call.end(call.depart("a", 0.0), 1.0, fault, "")
        assert call.left["a"] == left


@pytest.mark.parametrize(
    ("words", "first_token_at", "fault"),
    [
        ((OVERTAKEN,), None, Fault.SILENT),
        ((OVERTAKEN,), 2.0, Fault.OURS),  # it answers, only not as fast
        ((), None, Fault.OURS),
    ],
)
def test_only_who_has_sent_nothing_was_silent(
    words: tuple[str, ...], first_token_at: float | None, fault: Fault
) -> None:
    error = asyncio.CancelledError(*words)
    note_silence(error, Attempt("a", 0.0, first_token_at=first_token_at))
    assert fault_of(error) is fault


async def test_each_kind_of_call_has_its_own_idea_of_late() -> None:
    """A whole answer takes seconds; a first token that does is late."""
    config = HedgeConfig(min_samples=5, percentile=0.5)
    fleet = Fleet(a=[*[(4.0, 200)] * 5, *[(0.1, 200)] * 5, SILENT], b=(0.1, 200))
    hedge = PoolHedge(config, clock=fleet.clock)

    async def ask(*, hold: str) -> Run:
        return await Run(fleet, below=[hedge], call=call_for(hold=hold)).done()

    for _ in range(5):
        await ask(hold="whole")
    for _ in range(5):
        await ask(hold="first")
    assert set(fleet.hosts) == {"a"}
    run = await ask(hold="first")
    assert fleet.hosts[-2:] == ["a", "b"]
    assert run.took < 1.0
