import asyncio

from shared.infrastructure.resilience import TokenBucket
from shared.infrastructure.testing import FakeClock


async def test_a_loop_too_busy_for_its_timers_still_serves_the_line_with_every_newcomer() -> None:
    clock = FakeClock()
    bucket = TokenBucket(10.0, 1, clock=clock)
    assert bucket.try_acquire()
    served: list[int] = []

    async def wait(number: int) -> None:
        await bucket.acquire()
        served.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(3)]
    await clock.advance()
    for number in (3, 4):
        clock.stall(0.101)
        tasks.append(asyncio.create_task(wait(number)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert served == [0, 1]
    await clock.advance(0.31)
    assert served == [0, 1, 2, 3, 4]


async def test_a_newcomer_before_the_timer_asks_for_nothing() -> None:
    clock = FakeClock()
    bucket = TokenBucket(10.0, 1, clock=clock)
    assert bucket.try_acquire()
    tasks = [asyncio.create_task(bucket.acquire()) for _ in range(2)]
    await clock.advance()
    clock.stall(0.09)
    tasks.append(asyncio.create_task(bucket.acquire()))
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    assert clock.pending == 1
    await clock.advance(0.31)
    assert all(task.done() for task in tasks)
