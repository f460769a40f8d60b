import asyncio

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    Bulkhead,
    BulkheadConfig,
    BulkheadFullError,
    BulkheadLayer,
    stack,
)
from shared.infrastructure.testing import FakeClock


async def test_it_bounds_calls_in_flight_and_serves_the_line_in_order() -> None:
    bulkhead = Bulkhead(BulkheadConfig(max_concurrent=2), clock=FakeClock())
    running: list[int] = []
    most = 0
    gates = [asyncio.Event() for _ in range(6)]

    async def work(number: int) -> int:
        nonlocal most
        running.append(number)
        most = max(most, len(running))
        await gates[number].wait()
        running.remove(number)
        return number

    send = stack(work, BulkheadLayer(bulkhead), semantics=PLAIN_CALL)
    tasks = [asyncio.ensure_future(send(number)) for number in range(6)]
    await asyncio.sleep(0)
    assert running == [0, 1]
    gates[1].set()
    await asyncio.sleep(0.001)
    assert running == [0, 2]
    for gate in gates:
        gate.set()
    assert await asyncio.gather(*tasks) == list(range(6))
    assert most == 2
    assert bulkhead.snapshot()["in_flight"] == 0


async def test_a_full_line_and_a_long_wait_are_refused() -> None:
    clock = FakeClock()
    bulkhead = Bulkhead(BulkheadConfig(max_concurrent=1, max_queue=1), clock=clock)
    await bulkhead.acquire()
    waiting = asyncio.create_task(bulkhead.acquire(max_wait=2.0))
    await clock.advance(0.0)
    with pytest.raises(BulkheadFullError):
        await bulkhead.acquire()
    await clock.advance(2.0)
    with pytest.raises(BulkheadFullError):
        await waiting
    assert bulkhead.snapshot() == {
        "in_flight": 1,
        "max_concurrent": 1,
        "waiting": 0,
        "refused_count": 2,
    }


async def test_random_cancellation_leaks_no_slot() -> None:
    bulkhead = Bulkhead(BulkheadConfig(max_concurrent=3))

    async def work(_request: int) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    send = stack(work, BulkheadLayer(bulkhead), semantics=PLAIN_CALL)
    for round_ in range(50):
        tasks = [asyncio.ensure_future(send(number)) for number in range(12)]
        for turn in range(6):
            await asyncio.sleep(0)
            tasks[(round_ * 7 + turn * 5) % 12].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert bulkhead.snapshot()["in_flight"] == 0
    assert bulkhead.snapshot()["waiting"] == 0
