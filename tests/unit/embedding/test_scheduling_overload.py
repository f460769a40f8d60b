"""More work than the model can do: who gets in, when, and whether Retry-After holds."""

import asyncio
import math
import random
from dataclasses import dataclass, field

import pytest
from scheduling_fakes import Bench, Item

from services.embedding.errors import QueueFullError
from services.embedding.options import Lane

COSTS = (0.002, 0.0005, 0.0)


@dataclass
class Crowd:
    """Callers that come at random, and come back when they are told to."""

    bench: Bench
    rate: float
    seconds: float
    patience: float = math.inf
    in_whole_seconds: bool = False
    known: bool = True
    lengths: tuple[int, int] = (8, 120)
    served: int = 0
    finished: list[float] = field(default_factory=list)
    told: int = 0
    came_back: int = 0
    let_in_then: int = 0
    longest_queue: float = 0.0
    callers: set[asyncio.Task[None]] = field(default_factory=set)

    async def come(self, rng: random.Random) -> None:
        clock = self.bench.clock
        until = clock.now() + self.seconds
        number = 0
        while clock.now() < until:
            await clock.sleep(rng.expovariate(self.rate))
            number += 1
            caller = asyncio.create_task(self.call(number, rng.randint(*self.lengths)))
            self.callers.add(caller)
            caller.add_done_callback(self.callers.discard)
        await asyncio.gather(*self.callers)

    async def call(self, number: int, tokens: int) -> None:
        scheduler = self.bench.scheduler
        call = number if self.known else None
        returned = False
        while True:
            self.came_back += returned
            try:
                scheduler.admit(tokens, lane=Lane.DEFAULT, call=call)
            except QueueFullError as refused:
                wait = refused.retry_after or 0.0
                self.told += 1
            else:
                self.let_in_then += returned
                break
            if wait > self.patience:
                return
            await self.bench.clock.sleep(math.ceil(wait) if self.in_whole_seconds else wait)
            returned = True
        item = Item(tokens)
        self.bench.submit(item)
        self.longest_queue = max(self.longest_queue, scheduler.snapshot()["queued_seconds"])
        while item.outcome is None:
            await self.bench.clock.sleep(0.5)
        self.served += tokens
        self.finished.append(self.bench.clock.now())


async def overload(
    times: float, seconds: float, noise: float = 0.0, **options: object
) -> tuple[Crowd, float]:
    """Offer a multiple of what the model can do; return the crowd and the model's busy share."""
    bench = Bench(costs=COSTS, noise=noise, max_tokens=512)
    async with bench:
        await bench.learn()
        mean_tokens = 64
        capacity = 1 / (COSTS[1] * mean_tokens)
        crowd = Crowd(bench, times * capacity, seconds, **options)  # type: ignore[arg-type]
        began, busy = bench.clock.now(), bench.model.busy_seconds
        coming = asyncio.create_task(crowd.come(random.Random(7)))
        await bench.clock.advance(seconds)
        share = (bench.model.busy_seconds - busy) / (bench.clock.now() - began)
        while not coming.done():
            await bench.clock.advance(5.0)
        await coming
    return crowd, share


@pytest.mark.parametrize("in_whole_seconds", [False, True])
async def test_twice_what_it_can_do_keeps_it_busy_and_those_told_to_come_back_are_let_in(
    in_whole_seconds: bool,
) -> None:
    crowd, busy = await overload(2.0, 60.0, noise=0.3, in_whole_seconds=in_whole_seconds)
    assert busy > 0.9
    assert crowd.longest_queue < 4.5
    assert crowd.told > 1000
    assert crowd.let_in_then >= 0.9 * crowd.came_back


async def test_callers_that_cannot_be_told_apart_are_mostly_let_in_too() -> None:
    crowd, busy = await overload(2.0, 20.0, known=False)
    assert busy > 0.9
    assert crowd.let_in_then >= 0.9 * crowd.came_back > 100


async def test_places_of_those_who_do_not_come_back_go_to_others() -> None:
    crowd, busy = await overload(2.0, 40.0, patience=5.0)
    assert busy > 0.9
    assert crowd.told > 1.5 * crowd.came_back > 0
    assert crowd.let_in_then >= 0.9 * crowd.came_back


async def test_many_refused_at_once_are_told_to_come_one_after_the_other() -> None:
    async with Bench(costs=COSTS) as bench:
        await bench.learn()
        bench.submit(*(Item(100) for _ in range(200)))
        crowd = Crowd(bench, 1.0, 1.0)
        calls = [asyncio.create_task(crowd.call(number, 100)) for number in range(300)]
        while not all(call.done() for call in calls):
            await bench.clock.advance(1.0)
    assert crowd.told > 200
    assert crowd.let_in_then == crowd.came_back
    assert crowd.longest_queue < 12  # its start; nobody makes it any longer


async def test_without_an_overload_nobody_is_refused() -> None:
    crowd, _ = await overload(0.6, 20.0)
    assert crowd.told == 0
    assert crowd.longest_queue < 1.0


async def short_texts(times: float) -> tuple[Crowd, int]:
    """Offer a multiple of what two slots can do, or a full queue; return the tokens they read."""
    seconds, rate = 12.0, 1.2e3 / 16.5
    async with Bench(costs=(0.01, 0.0015, 0.0), max_tokens=256, concurrency=2) as bench:
        await bench.learn()
        crowd = Crowd(bench, times * rate, seconds, lengths=(8, 25), in_whole_seconds=True)
        rng = random.Random(3)
        if not times:
            bench.submit(*(Item(rng.randint(8, 25)) for _ in range(2000)))
        coming = asyncio.create_task(crowd.come(rng)) if times else None
        await bench.clock.advance(seconds)
        tokens = sum(item.prepared.tokens for item in bench.model.items)
        while coming is not None and not coming.done():
            await bench.clock.advance(5.0)
    return crowd, tokens


async def test_an_overload_of_short_texts_does_not_cost_full_batches() -> None:
    _, full = await short_texts(0.0)
    crowd, tokens = await short_texts(2.0)
    assert tokens >= 0.9 * full
    assert crowd.let_in_then >= 0.9 * crowd.came_back > 100
