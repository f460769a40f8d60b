import asyncio
import contextvars
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from scheduling_fakes import Bench, Item, facts

from services.embedding.backends.protocol import Prepared
from services.embedding.errors import InvalidReplyError, ServiceStoppedError
from services.embedding.options import Lane
from services.embedding.outcome import Embedded, Outcome
from services.embedding.scheduling import Scheduler
from shared.infrastructure.resilience import DeadlineExceededError, deadline
from shared.infrastructure.resilience.timeout import remaining_time
from shared.infrastructure.testing import FakeClock


def sizes(bench: Bench) -> list[list[int]]:
    return [[item.job.tokens for item in batch] for batch in bench.model.batches]


async def test_a_job_is_told_its_own_vector() -> None:
    async with Bench() as bench:
        items = [Item(tokens) for tokens in (10, 11, 12)]
        bench.submit(*items)
        await bench.clock.advance(1.0)
    for item in items:
        assert isinstance(item.outcome, Embedded)
        assert item.outcome.token_count == item.job.tokens


async def test_an_idle_model_gets_a_job_at_once_without_a_timer() -> None:
    async with Bench() as bench:
        bench.submit(Item())
        assert bench.clock.pending == 0
        await bench.clock.advance()
        assert sizes(bench) == [[10]]


async def test_jobs_of_one_turn_of_the_loop_go_together() -> None:
    async with Bench() as bench:
        for _ in range(5):
            bench.submit(Item())
        await bench.clock.advance()
        assert sizes(bench) == [[10] * 5]


async def test_what_waits_while_the_model_is_busy_goes_in_one_batch() -> None:
    async with Bench() as bench:
        await bench.occupy()
        for _ in range(5):
            bench.submit(Item())
            await bench.clock.advance(0.001)
        assert sizes(bench) == []
        await bench.clock.advance(1.0)
        assert sizes(bench) == [[10] * 5]


@pytest.mark.parametrize("concurrency", [1, 2, 5])
async def test_as_many_batches_run_as_the_backend_is_worth(concurrency: int) -> None:
    async with Bench(concurrency=concurrency, max_rows=1) as bench:
        items = [Item() for _ in range(20)]
        bench.submit(*items)
        await bench.clock.advance()
        assert bench.model.running == concurrency
        await bench.clock.advance(1.0)
        assert bench.model.most_running == concurrency
        assert all(item.outcome for item in items)


async def test_only_one_group_is_in_a_batch() -> None:
    async with Bench() as bench:
        bench.submit(*(Item(group=group) for group in "abab"))
        await bench.clock.advance(1.0)
        groups = [[item.prepared.group for item in batch] for batch in bench.model.batches]
        assert groups == [["a", "a"], ["b", "b"]]


async def test_the_next_batch_runs_before_the_last_ones_outcomes_are_told() -> None:
    order: list[str] = []

    async def run(batch: Sequence[Prepared]) -> Sequence[Outcome]:
        order.append(f"run {batch[0].payload}")
        await asyncio.sleep(0)
        return [ValueError()] * len(batch)

    scheduler = Scheduler(run)
    scheduler.start(facts(max_rows=1))
    for name in "ab":
        item = Item()
        item.job.prepared = Prepared(10, name)
        item.job.on_outcome = lambda _, name=name: order.append(f"told {name}")  # type: ignore[misc]
        scheduler.submit([item.job])
    await asyncio.sleep(0)
    await scheduler.stop()
    assert order == ["run a", "run b", "told a", "told b"]


async def test_an_error_is_the_outcome_of_its_batch_and_of_no_other() -> None:
    async with Bench() as bench:
        bench.model.error = error = ValueError("broken")
        failed = [Item(), Item()]
        bench.submit(*failed)
        await bench.clock.advance(1.0)
        bench.model.error = None
        well = Item()
        bench.submit(well)
        await bench.clock.advance(1.0)
    assert [item.outcome for item in failed] == [error, error]
    assert isinstance(well.outcome, Embedded)


async def test_the_time_of_a_failed_batch_says_nothing() -> None:
    async with Bench() as bench:
        bench.model.error = ValueError()
        bench.submit(Item())
        await bench.clock.advance(1.0)
        assert bench.scheduler.snapshot()["cost_model"]["observed_count"] == 0


async def test_a_batch_the_backend_gives_up_by_itself_stops_nobody_else() -> None:
    async with Bench(max_rows=1) as bench:
        bench.model.error = asyncio.CancelledError()
        items = [Item(), Item()]
        bench.submit(*items)
        await bench.clock.advance(0.0025)
        bench.model.error = None
        await bench.clock.advance(1.0)
    assert isinstance(items[0].outcome, ServiceStoppedError)
    assert isinstance(items[1].outcome, Embedded)


async def test_a_wrong_number_of_outcomes_is_an_invalid_reply() -> None:
    async def run(batch: Sequence[Prepared]) -> Sequence[Outcome]:
        return [ValueError()]

    scheduler = Scheduler(run)
    scheduler.start(facts())
    items = [Item(), Item()]
    scheduler.submit([item.job for item in items])
    await scheduler.stop()
    assert all(isinstance(item.outcome, InvalidReplyError) for item in items)


async def test_a_callback_that_fails_takes_no_outcome_from_the_others() -> None:
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    async with Bench() as bench:
        items = [Item(), Item()]
        items[0].job.on_outcome = lambda _: 1 / 0
        bench.submit(*items)
        await bench.clock.advance(1.0)
    assert isinstance(items[1].outcome, Embedded)
    assert [type(context["exception"]) for context in unheard] == [ZeroDivisionError]


async def test_a_batch_runs_outside_anybodys_deadline_and_context() -> None:
    mine = contextvars.ContextVar("mine", default="")
    seen: list[tuple[float | None, str]] = []

    async def run(batch: Sequence[Prepared]) -> Sequence[Outcome]:
        seen.append((remaining_time(), mine.get()))
        return [ValueError()] * len(batch)

    scheduler = Scheduler(run)
    scheduler.start(facts())
    mine.set("caller")
    async with deadline(5.0):
        scheduler.submit([Item().job])
        await asyncio.sleep(0)
    await scheduler.stop()
    assert seen == [(None, "")]


async def test_a_cancelled_job_is_dropped_if_it_is_not_in_a_batch() -> None:
    async with Bench() as bench:
        busy = await bench.occupy()
        left, stays = Item(), Item()
        bench.submit(left, stays)
        assert bench.scheduler.cancel(left.job)
        assert not bench.scheduler.cancel(left.job)
        assert not bench.scheduler.cancel(busy.job)
        await bench.clock.advance(1.0)
        assert not bench.scheduler.cancel(stays.job)
        assert bench.scheduler.snapshot()["cancelled_count"] == 1
    assert (left.outcomes, len(stays.outcomes), len(busy.outcomes)) == ([], 1, 1)


async def test_an_expired_job_is_dropped_before_its_batch() -> None:
    async with Bench() as bench:
        await bench.occupy()
        now = bench.clock.now()
        items = [Item(deadline=now + after) for after in (0.05, 9.0, 0.05)] + [Item()]
        bench.submit(*items)
        await bench.clock.advance(1.0)
        assert bench.model.batches == [[items[1], items[3]]]
        assert bench.scheduler.snapshot()["expired_count"] == 2
    assert isinstance(items[0].outcome, DeadlineExceededError)
    assert isinstance(items[2].outcome, DeadlineExceededError)


async def test_a_job_that_is_joined_moves_to_the_more_urgent_lane() -> None:
    async with Bench(max_rows=1, costs=(0.1, 0.0, 0.0)) as bench:
        await bench.occupy()
        first, second, joined = (Item(lane=Lane.DEFAULT) for _ in range(3))
        bench.submit(first, second, joined)
        bench.scheduler.hurry(joined.job, lane=Lane.BULK, deadline=None)
        assert joined.job.lane is Lane.DEFAULT
        bench.scheduler.hurry(joined.job, lane=Lane.INTERACTIVE, deadline=None)
        await bench.clock.advance(2.0)
        assert bench.model.items == [joined, first, second]
        bench.scheduler.hurry(joined.job, lane=Lane.INTERACTIVE, deadline=None)


@pytest.mark.parametrize(
    ("own", "others", "lives"),
    [
        (0.05, 9.0, True),
        (0.05, None, True),
        (9.0, 0.05, True),
        (None, 0.05, True),
        (0.05, 0.06, False),
    ],
)
async def test_a_job_expires_with_the_last_of_those_who_want_it(
    own: float | None, others: float | None, lives: bool
) -> None:
    async with Bench() as bench:
        await bench.occupy()
        now = bench.clock.now()
        item = Item(deadline=None if own is None else now + own)
        bench.submit(item)
        until = None if others is None else now + others
        bench.scheduler.hurry(item.job, lane=Lane.DEFAULT, deadline=until)
        await bench.clock.advance(1.0)
    assert isinstance(item.outcome, Embedded) is lives


async def test_an_interactive_job_waits_for_about_one_batch_of_a_huge_bulk_call() -> None:
    async with Bench(costs=(0.001, 0.0005, 0.0)) as bench:
        await bench.learn()
        bench.submit(*(Item(50, Lane.BULK, tenant="huge") for _ in range(2000)))
        waits: list[float] = []
        for _ in range(20):
            await bench.clock.advance(0.777)
            item = Item(20, Lane.INTERACTIVE, tenant="small")
            began = bench.clock.now()
            bench.submit(item)
            while item.outcome is None:
                await bench.clock.advance(0.001)
            waits.append(bench.clock.now() - began)
        longest = 0.001 + 0.0005 * bench.facts.max_tokens
        assert max(waits) < longest + 0.05
        assert sorted(waits)[10] < longest / 2


async def test_a_tenants_flood_is_no_reason_to_refuse_another() -> None:
    async with Bench(costs=(0.001, 0.0005, 0.0)) as bench:
        await bench.learn()
        bench.submit(*(Item(50, tenant="flood") for _ in range(400)))
        bench.scheduler.admit(50, lane=Lane.DEFAULT, tenant="small")
        item = Item(50, tenant="small")
        bench.submit(item)
        await bench.clock.advance(1.1)
        assert item.outcome is not None


async def test_beside_interactive_jobs_batches_are_short() -> None:
    async with Bench(costs=(0.0, 0.001, 0.0)) as bench:
        await bench.learn()
        bench.submit(*(Item(10) for _ in range(300)))
        await bench.clock.advance()
        usual = len(bench.model.batches[0])
        urgent = Item(100, Lane.INTERACTIVE)
        bench.submit(urgent)
        await bench.clock.advance(0.9)
        sizes = [len(batch) for batch in bench.model.batches]
        assert sizes[:2] == [usual, 1]
        assert set(sizes[2:]) == {5}
        await bench.clock.advance(1.0)
        assert len(bench.model.batches[-1]) == usual > 20


async def test_less_urgent_jobs_fill_a_batch_only_where_they_cost_little() -> None:
    async with Bench(costs=(0.1, 0.0001, 0.0)) as bench:
        await bench.learn()
        await bench.occupy()
        bench.submit(Item(10, Lane.INTERACTIVE), *(Item(10, Lane.BULK) for _ in range(9)))
        await bench.clock.advance(1.0)
        assert len(bench.model.batches[0]) == 10
    async with Bench(costs=(0.0001, 0.001, 0.0)) as bench:
        await bench.learn()
        await bench.occupy()
        bench.submit(Item(10, Lane.INTERACTIVE), *(Item(10, Lane.BULK) for _ in range(9)))
        await bench.clock.advance(2.0)
        assert len(bench.model.batches[0]) == 1
        assert bench.scheduler.snapshot()["closed_counts"]["oversize"] == 1  # the busy one


async def test_what_padding_costs_a_busy_model_is_learned() -> None:
    async with Bench(costs=(0.0001, 0.0001, 0.0), max_rows=4) as bench:
        await bench.learn()
        lengths = random.Random(1).choices(range(20, 100), k=1000)
        bench.submit(*(Item(length) for length in lengths))
        await bench.clock.advance(5.0)
        assert 0.7 < bench.scheduler.snapshot()["cost_model"]["efficiency"] < 0.98


async def test_no_jobs_are_no_work() -> None:
    scheduler = Scheduler(Bench().model.run)
    scheduler.submit([])
    scheduler.start(facts())
    scheduler.submit([])
    await scheduler.stop()


async def test_an_estimate_is_about_what_it_takes() -> None:
    async with Bench(costs=(0.01, 0.001, 0.0)) as bench:
        await bench.learn()
        assert bench.scheduler.estimate(100, lane=Lane.DEFAULT) == pytest.approx(0.11, rel=0.1)
        bench.submit(*(Item(100) for _ in range(20)))
        await bench.clock.advance(0.05)
        estimate = bench.scheduler.estimate(100, lane=Lane.DEFAULT)
        item = Item(100)
        bench.submit(item)
        began = bench.clock.now()
        while item.outcome is None:
            await bench.clock.advance(0.01)
        assert estimate == pytest.approx(bench.clock.now() - began, rel=0.3)


async def test_a_snapshot_tells_what_waits_runs_and_was_done() -> None:
    async with Bench(max_rows=2) as bench:
        await bench.learn()
        await bench.occupy(100)
        bench.submit(Item(10), Item(12), Item(8, Lane.BULK))
        bench.scheduler.cancel((left := Item(10)).job)
        bench.submit(left)
        snapshot = bench.scheduler.snapshot()
        assert json.loads(json.dumps(snapshot)) == snapshot
        assert snapshot["lanes"]["default"]["queued_jobs"] == 3
        assert snapshot["lanes"]["default"]["queued_tokens"] == 32
        assert snapshot["lanes"]["bulk"]["queued_tokens"] == 8
        assert snapshot["running_batches"] == snapshot["running_jobs"] == 1
        assert 0 < snapshot["queued_seconds"] < 1
        before = bench.scheduler.snapshot()
        await bench.clock.advance(1.0)
        after = bench.scheduler.snapshot()
    assert after["row_count"] - before["row_count"] == 5
    assert after["token_count"] - before["token_count"] == 140
    assert after["padded_token_count"] > after["token_count"]
    assert after["waste_ratio"] == after["padded_token_count"] / after["token_count"]
    assert after["closed_counts"]["rows"] > before["closed_counts"]["rows"]
    assert after["queued_seconds"] == after["running_jobs"] == 0
    assert 0.009 < after["lanes"]["bulk"]["wait_p50"] < 0.03
    assert after["lanes"]["bulk"]["waited_count"] == 1
    assert after["cost_model"]["b"] == pytest.approx(0.0001, rel=0.1)


async def test_a_clock_of_its_own_is_not_needed() -> None:
    assert Scheduler(Bench().model.run, clock=FakeClock()).snapshot()["batch_count"] == 0
