"""What a long outage, Retry-After and a time limit do to a retrier."""

import contextlib
import itertools
import statistics
from collections.abc import Awaitable, Callable

from benchmarks.report import Cell
from benchmarks.retriers import BusyError, Plan, Retry
from benchmarks.virtual_time import VirtualTime

Make = Callable[[Plan], Awaitable[Retry]]
Scenario = Callable[[Make, VirtualTime], Awaitable[Cell]]


async def jitter_at_cap(make: Make, time: VirtualTime) -> Cell:
    retry = await make(Plan(attempts=40, first_delay=0.1, longest_delay=5.0))
    calls: list[float] = []

    async def fail() -> None:
        calls.append(time.monotonic)
        raise BusyError

    with contextlib.suppress(BusyError):
        await retry(fail)
    # From the tenth on, every delay is bound by the cap alone.
    late = [after - before for before, after in itertools.pairwise(calls)][10:]
    text = f"{min(late):.1f} to {max(late):.1f} s"
    return Cell(text, len(late) == 29 and statistics.pstdev(late) > 0.5)


async def late_retry_after(make: Make, time: VirtualTime) -> Cell:
    retry = await make(Plan(attempts=4, first_delay=0.1, longest_delay=60.0, time_limit=1.0))
    began = time.monotonic

    async def busy() -> None:
        raise BusyError(retry_after=30.0)

    with contextlib.suppress(BusyError):
        await retry(busy)
    elapsed = time.monotonic - began
    return Cell(f"gives up after {elapsed:.1f} s", elapsed < 1.0)


async def early_retry_after(make: Make, time: VirtualTime) -> Cell:
    retry = await make(Plan(attempts=2, first_delay=0.1, longest_delay=1.0))
    calls: list[float] = []

    async def busy() -> None:
        calls.append(time.monotonic)
        raise BusyError(retry_after=3.0)

    with contextlib.suppress(BusyError):
        await retry(busy)
    if len(calls) < 2:
        return Cell("no second attempt", False)
    waited = calls[1] - calls[0]
    return Cell(f"{waited:.1f} s", waited >= 3.0)


async def time_limit(make: Make, time: VirtualTime) -> Cell:
    worst = 0.0
    for _ in range(20):
        retry = await make(Plan(attempts=50, first_delay=0.3, longest_delay=5.0, time_limit=1.0))
        began = time.monotonic

        async def fail() -> None:
            raise BusyError

        with contextlib.suppress(BusyError):
            await retry(fail)
        worst = max(worst, time.monotonic - began)
    return Cell(f"{worst:.1f} s", worst <= 1.0 + 1e-6)


SCENARIOS: dict[str, Scenario] = {
    "Delays 11 to 39 of a long outage, cap 5 s": jitter_at_cap,
    "Retry-After 30 s, time limit 1 s": late_retry_after,
    "Retry-After 3 s, longest delay 1 s: second attempt after": early_retry_after,
    "Time limit 1 s: longest of 20 calls": time_limit,
}
