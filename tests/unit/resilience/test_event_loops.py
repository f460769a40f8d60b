"""Primitives for tasks belong to one event loop at a time; the next may have them after it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    Bulkhead,
    BulkheadConfig,
    BulkheadLayer,
    CircuitBreaker,
    CircuitBreakerLayer,
    ConfigurationError,
    HealthMonitor,
    RateLimiter,
    RateLimitLayer,
    RetryBudget,
    RetryConfig,
    RetryLayer,
    SingleFlight,
    SlidingWindow,
    TokenBucket,
    stack,
)

LIMITERS: list[Callable[[], RateLimiter]] = [
    lambda: TokenBucket(1000.0, 1),
    lambda: SlidingWindow(1, 0.001),
]


async def work(number: int) -> int:
    await asyncio.sleep(0)
    return number


@pytest.mark.parametrize("limiter", LIMITERS)
def test_a_stack_serves_one_event_loop_after_the_other(limiter: Callable[[], RateLimiter]) -> None:
    send = stack(
        work,
        RetryLayer(RetryConfig(), budget=RetryBudget()),
        RateLimitLayer(limiter()),
        BulkheadLayer(bulkhead := Bulkhead(BulkheadConfig(max_concurrent=1))),
        CircuitBreakerLayer(CircuitBreaker()),
        semantics=PLAIN_CALL,
    )

    async def main() -> list[int]:
        return await asyncio.gather(*(send(number) for number in range(5)))

    for _ in range(3):
        assert asyncio.run(main()) == list(range(5))
    assert bulkhead.snapshot()["in_flight"] == 0


async def queue_and_leave(join: Callable[[], Awaitable[None]]) -> None:
    """Leave the loop while tasks of it stand in line; `asyncio.run` cancels them."""
    tasks = [asyncio.ensure_future(join()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not tasks[-1].done()


@pytest.mark.parametrize("limiter", LIMITERS)
def test_a_line_that_a_loop_left_behind_does_not_stop_the_next(
    limiter: Callable[[], RateLimiter],
) -> None:
    limited = limiter()
    for _ in range(3):
        asyncio.run(queue_and_leave(limited.acquire))
        assert limited.snapshot()["waiting"] == 0
    asyncio.run(limited.acquire(max_wait=1.0))


def test_a_slot_that_a_loop_left_behind_is_free_in_the_next() -> None:
    bulkhead = Bulkhead(BulkheadConfig(max_concurrent=1))
    free = stack(work, BulkheadLayer(bulkhead), semantics=PLAIN_CALL)

    async def forever(_number: int) -> int:
        await asyncio.Event().wait()
        return 0

    stuck = stack(forever, BulkheadLayer(bulkhead), semantics=PLAIN_CALL)

    async def leave() -> None:
        tasks = [asyncio.ensure_future(stuck(0)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)

    asyncio.run(leave())
    assert bulkhead.snapshot() | {"refused_count": 0} == {
        "in_flight": 0,
        "max_concurrent": 1,
        "waiting": 0,
        "refused_count": 0,
    }
    assert asyncio.run(free(7)) == 7


def test_a_single_flight_serves_one_event_loop_after_the_other() -> None:
    flights = SingleFlight[str, int]()

    async def main() -> list[int]:
        return await asyncio.gather(*(flights.do("key", lambda: work(1)) for _ in range(3)))

    for _ in range(2):
        assert asyncio.run(main()) == [1, 1, 1]
    assert len(flights) == 0


def test_a_line_in_which_tasks_of_another_running_loop_wait_refuses() -> None:
    bulkhead = Bulkhead(BulkheadConfig(max_concurrent=1))
    assert bulkhead.try_acquire()

    async def ask_in_another_loop() -> None:
        waiter = asyncio.create_task(bulkhead.acquire())
        await asyncio.sleep(0)
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, bulkhead.acquire())
        bulkhead.release()
        await waiter

    asyncio.run(ask_in_another_loop())
    assert bulkhead.snapshot()["waiting"] == 0


def test_a_health_monitor_that_nobody_stopped_can_be_started_in_the_next_loop() -> None:
    checks = 0

    async def check() -> None:
        nonlocal checks
        checks += 1

    monitor = HealthMonitor("x", check)

    async def run() -> None:
        monitor.start()
        await asyncio.sleep(0.001)

    asyncio.run(run())
    asyncio.run(run())
    assert checks == 2
