import asyncio
from collections.abc import Sequence

import pytest
from scheduling_fakes import Bench, Item, facts

from services.embedding.backends.protocol import Prepared
from services.embedding.errors import ServiceStoppedError
from services.embedding.options import Lane
from services.embedding.outcome import Embedded, Outcome
from services.embedding.scheduling import Scheduler


def sizes(bench: Bench) -> list[list[int]]:
    return [[item.job.tokens for item in batch] for batch in bench.model.batches]


async def test_stop_refuses_new_calls_and_finishes_those_that_are_here() -> None:
    async with Bench(max_rows=1) as bench:
        items = [Item() for _ in range(3)]
        bench.submit(*items)
        stopping = asyncio.create_task(bench.scheduler.stop())
        await bench.clock.advance()
        late = Item()
        bench.submit(late)
        with pytest.raises(ServiceStoppedError):
            bench.scheduler.admit(10, lane=Lane.DEFAULT)
        assert late.outcome is None  # never from within `submit`
        await bench.clock.advance(1.0)
        assert stopping.done()
    assert isinstance(late.outcome, ServiceStoppedError)
    assert all(isinstance(item.outcome, Embedded) for item in items)


async def test_after_stop_every_outcome_has_been_told() -> None:
    async def run(batch: Sequence[Prepared]) -> Sequence[Outcome]:
        return [ValueError()] * len(batch)

    scheduler = Scheduler(run)
    scheduler.start(facts())
    item = Item()
    scheduler.submit([item.job])
    await asyncio.sleep(0)  # the batch has ended in this turn
    await scheduler.stop()
    assert item.outcome is not None


async def test_a_cancelled_stop_fails_what_is_left() -> None:
    async with Bench(max_rows=1) as bench:
        items = [Item() for _ in range(3)]
        bench.submit(*items)
        stopping = asyncio.create_task(bench.scheduler.stop())
        await bench.clock.advance()
        stopping.cancel()
        await bench.clock.advance()
        assert stopping.cancelled()
        assert bench.model.running == 0
    assert all(isinstance(item.outcome, ServiceStoppedError) for item in items)


async def test_a_stop_cancelled_while_a_slot_is_being_filled_leaves_nothing_behind() -> None:
    async with Bench(concurrency=2, max_rows=1) as bench:
        early = [Item() for _ in range(3)]
        stopping = asyncio.create_task(bench.scheduler.stop())
        # In one turn: it begins to wait, is cancelled, and the first batch calls for a second.
        asyncio.get_running_loop().call_soon(stopping.cancel)
        bench.submit(*early)
        await bench.clock.advance()
        assert stopping.cancelled()
        bench.scheduler.start(bench.facts)
        items = [Item() for _ in range(4)]
        bench.submit(*items)
        await bench.clock.advance()
        assert bench.model.running == 2
        await bench.clock.advance(1.0)
    assert all(isinstance(item.outcome, ServiceStoppedError) for item in early)
    assert all(isinstance(item.outcome, Embedded) for item in items)


async def test_after_a_stop_it_may_start_again() -> None:
    async with Bench() as bench:
        with pytest.raises(ServiceStoppedError):
            Scheduler(bench.model.run).admit(1, lane=Lane.DEFAULT)
        bench.scheduler.start(facts(max_rows=1))  # it runs already
        await bench.scheduler.stop()
        bench.scheduler.start(facts(max_rows=2))
        items = [Item() for _ in range(4)]
        bench.submit(*items)
        await bench.clock.advance(1.0)
        assert [len(batch) for batch in bench.model.batches] == [2, 2]
