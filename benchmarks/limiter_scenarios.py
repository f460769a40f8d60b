"""What bursts, weights, cancellation and clocks do to a rate limiter of ten a second."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from benchmarks.limiters import LIMIT, PERIOD, Acquire, NoWeightsError
from benchmarks.report import Cell
from benchmarks.virtual_time import VirtualTime

Make = Callable[[], Awaitable[Acquire]]
Scenario = Callable[[Make, VirtualTime], Awaitable[Cell]]

# What is served in one go may take a few rounds of the loop.
_HAIR = 1e-4


class _Line:
    """Waiters of a limiter, and when each was served."""

    def __init__(self, acquire: Acquire, time: VirtualTime) -> None:
        self._acquire = acquire
        self._time = time
        self.served: list[tuple[float, int]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def _wait(self, number: int, cost: int) -> None:
        await self._acquire(cost)
        self.served.append((self._time.monotonic, number))

    async def join(self, count: int, cost: int = 1) -> None:
        for _ in range(count):
            self.tasks.append(asyncio.ensure_future(self._wait(len(self.tasks), cost)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def end(self) -> None:
        await asyncio.gather(*self.tasks)

    def most_in_a_period(self) -> int:
        times = sorted(when for when, _ in self.served)
        return max(sum(0 <= t - first < PERIOD - _HAIR for t in times) for first in times)


async def window(make: Make, time: VirtualTime) -> Cell:
    line = _Line(await make(), time)
    await line.join(1)
    await asyncio.sleep(0.9 * PERIOD)
    await line.join(40)
    await line.end()
    most = line.most_in_a_period()
    return Cell(str(most), most <= LIMIT)


async def blocked_loop(make: Make, time: VirtualTime) -> Cell:
    line = _Line(await make(), time)
    await line.join(40)
    await asyncio.sleep(0.5 * PERIOD)
    time.block_loop(1.5 * PERIOD)
    await line.end()
    most = line.most_in_a_period()
    return Cell(str(most), most <= LIMIT)


async def weighted(make: Make, time: VirtualTime) -> Cell:
    async def overtaken(spent_over: float) -> int:
        """Spend the limit over so many seconds: the permits come back likewise."""
        line = _Line(await make(), time)
        for _ in range(LIMIT):
            await line.join(1)
            await asyncio.sleep(spent_over / LIMIT)
        await line.join(1, cost=5)
        await line.join(40)
        await line.end()
        heavy = next(place for place, (_, number) in enumerate(line.served) if number == LIMIT)
        return heavy - LIMIT

    try:
        await (await make())(2)
    except NoWeightsError as error:
        return Cell(str(error), None)
    worst = max(await overtaken(0.0), await overtaken(PERIOD))
    return Cell(f"{worst} of 40", worst == 0)


async def order(make: Make, time: VirtualTime) -> Cell:
    line = _Line(await make(), time)
    await line.join(50)
    await line.end()
    numbers = [number for _, number in line.served]
    inversions = sum(later < earlier for earlier, later in itertools.pairwise(numbers))
    return Cell(f"{inversions} out of order", inversions == 0)


async def cancelled_waiters(make: Make, time: VirtualTime) -> Cell:
    async def last_served(cancelled: int) -> float:
        line = _Line(await make(), time)
        await line.join(LIMIT)
        await line.join(cancelled + LIMIT)
        began = time.monotonic
        for task in line.tasks[LIMIT : LIMIT + cancelled]:
            task.cancel()
        await asyncio.gather(*line.tasks, return_exceptions=True)
        return line.served[-1][0] - began

    ideal, actual = await last_served(0), await last_served(20)
    # Those that poll look up every few dozen milliseconds.
    return Cell(f"{actual:.1f} s, alone {ideal:.1f} s", actual <= ideal + 0.1 * PERIOD)


async def cancelled_in_order(make: Make, time: VirtualTime) -> Cell:
    line = _Line(await make(), time)
    await line.join(LIMIT)
    await line.join(40)
    # Every other one leaves while the line moves, some in the very moment their turn comes.
    for number in range(LIMIT, LIMIT + 40, 2):
        await asyncio.sleep(PERIOD / LIMIT)
        line.tasks[number].cancel()
    await asyncio.gather(*line.tasks, return_exceptions=True)
    numbers = [number for _, number in line.served]
    inversions = sum(later < earlier for earlier, later in itertools.pairwise(numbers))
    lost = sum(number not in numbers for number in range(LIMIT + 1, LIMIT + 40, 2))
    return Cell(f"{inversions} out of order, {lost} forgotten", inversions == 0 and lost == 0)


async def wall_clock_forward(make: Make, time: VirtualTime) -> Cell:
    line = _Line(await make(), time)
    await line.join(LIMIT)
    await line.end()
    time.step_wall_clock(3600.0)
    await line.join(LIMIT)
    await asyncio.sleep(0)
    passed = len(line.served) - LIMIT
    await line.end()
    return Cell(f"{passed} of 10 pass at once", passed == 0)


SCENARIOS: dict[str, Scenario] = {
    "Most permits in any second, limit 10, waiters queued": window,
    "The same, after the loop was blocked for 1.5 s": blocked_loop,
    "A waiter for 5 permits, then 40 for one each: overtaken by": weighted,
    "50 waiters are served in order of arrival": order,
    "20 waiters cancelled, 10 behind them: the last of those is served after": cancelled_waiters,
    "40 waiters, every other one is cancelled while the line moves": cancelled_in_order,
    "Spent limit, wall clock steps 1 h forward": wall_clock_forward,
}
