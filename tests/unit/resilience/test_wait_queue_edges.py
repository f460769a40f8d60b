"""The line in front of something scarce, on its own: whom it asks, and when."""

import asyncio
import math

from shared.infrastructure.resilience import Bulkhead, BulkheadConfig, TokenBucket
from shared.infrastructure.resilience.wait_queue import WaitQueue
from shared.infrastructure.testing import FakeClock


async def test_a_newcomer_at_the_very_instant_the_head_is_due_has_the_line_served() -> None:
    clock = FakeClock()
    bucket = TokenBucket(8.0, 1, clock=clock)
    assert bucket.try_acquire()
    head = asyncio.create_task(bucket.acquire())
    await asyncio.sleep(0)
    clock.stall(0.125)  # exactly then, on a loop that has not come round to its timer
    newcomer = asyncio.create_task(bucket.acquire())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert head.done()
    assert not newcomer.done()
    newcomer.cancel()


async def test_a_slot_passes_over_a_waiter_that_was_cancelled_in_the_same_tick() -> None:
    bulkhead = Bulkhead(BulkheadConfig(max_concurrent=1), clock=FakeClock())
    assert bulkhead.try_acquire()
    first, second = (asyncio.create_task(bulkhead.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    bulkhead.release()
    assert bulkhead.snapshot()["in_flight"] == 1  # the second has it already
    await second
    assert first.cancelled()


async def test_a_line_is_asked_about_once_for_its_head_and_not_for_who_stands_behind() -> None:
    clock = FakeClock()
    asked: list[float] = []

    def take(cost: float) -> float:
        asked.append(cost)
        return 1.0 if clock.now() < 1001.0 else 0.0

    queue = WaitQueue(take, lambda _cost: None, clock)
    calls = [asyncio.create_task(queue.join(float(number), None)) for number in range(1, 5)]
    await clock.advance(0.5)
    assert asked == [1.0]
    assert queue.queued_cost == 10.0
    await clock.advance(0.5)
    assert await asyncio.gather(*calls) == [True] * 4
    assert asked == [1.0, 1.0, 2.0, 3.0, 4.0]
    assert (queue.queued_cost, len(queue), clock.pending) == (0.0, 0, 0)


async def test_nobody_is_asked_about_by_the_clock_where_only_a_release_can_tell() -> None:
    clock = FakeClock()
    queue = WaitQueue(lambda _cost: math.inf, lambda _cost: None, clock)
    call = asyncio.create_task(queue.join(1.0, 3.0))
    await clock.advance()
    assert clock.pending == 1  # its own patience
    await clock.advance(3.0)
    assert await call is False
    assert clock.pending == 0


async def test_who_loses_patience_leaves_the_middle_of_the_line_at_once() -> None:
    clock = FakeClock()
    queue = WaitQueue(lambda _cost: math.inf, lambda _cost: None, clock)
    patience = [None, 2.0, None]
    calls = [asyncio.create_task(queue.join(2.0, seconds)) for seconds in patience]
    await clock.advance()
    assert (len(queue), queue.queued_cost) == (3, 6.0)
    for timer in list(clock._timers):
        if timer[2].callback is not None:
            timer[2].callback()  # before any task runs
    assert (len(queue), queue.queued_cost) == (2, 4.0)
    assert await calls[1] is False
    for call in calls:
        call.cancel()


async def test_who_is_served_in_time_leaves_no_timer_behind() -> None:
    clock = FakeClock()
    bulkhead = Bulkhead(BulkheadConfig(max_concurrent=1), clock=clock)
    assert bulkhead.try_acquire()
    call = asyncio.create_task(bulkhead.acquire(max_wait=30.0))
    await clock.advance()
    assert clock.pending == 1
    bulkhead.release()
    await call
    assert clock.pending == 0
