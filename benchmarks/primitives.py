"""Measure what a guard costs a call that has nothing wrong: `python -m benchmarks.primitives`.

Every contender takes its turn in every round, so that a noisy moment falls on all of them; what
counts are the medians over the rounds, and their ratios.
"""

import asyncio
import gc
import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from benchmarks.contenders import GROUPS, LINES, Acquire, noop
from benchmarks.report import publish, table, versions

ROUNDS = 15
CALLS = 2_000


class Queue(NamedTuple):
    """Waiters that all come at once, and how they are served."""

    waiters: int
    rate: float
    burst: int
    rounds: int
    limiters: tuple[str, ...]


QUEUES = [
    Queue(1_000, 1_000.0, 100, 3, tuple(LINES)),
    # The two others need more than twice the ideal time: left out to keep the run short.
    Queue(100_000, 20_000.0, 2_000, 1, ("ours", "aiolimiter")),
]

Call = Callable[[], Awaitable[object]]


async def main() -> int:
    warnings.simplefilter("ignore")
    calls: dict[tuple[str, str], Call] = {
        (group, name): await make()
        for group, contenders in GROUPS.items()
        for name, make in contenders.items()
    }
    calls["", "await noop()"] = noop
    nanoseconds = await measure(calls)
    base = nanoseconds.pop(("", "await noop()"))
    method = (
        f"Medians of {ROUNDS} interleaved rounds of {CALLS:,} calls, none of which waits or fails"
    )
    parts = [f"{method}; `await noop()` takes {base:,.0f} ns.\n"]
    for group, contenders in GROUPS.items():
        parts.append(f"## {group}\n\n{costs(contenders, nanoseconds, group, base)}")
    for queue in QUEUES:
        title = f"{queue.waiters:,} waiters at {queue.rate:,.0f} a second"
        parts.append(f"## {title}\n\n{await lines(queue)}")
    names = [name for contenders in [*GROUPS.values(), LINES] for name in contenders]
    parts.append(versions(part for name in names for part in name.split(" + ")) + ".\n")
    publish("primitives", "Cost of a guard", "\n".join(parts))
    return 0


async def measure(calls: dict[tuple[str, str], Call]) -> dict[tuple[str, str], float]:
    """Return the median nanoseconds of each call; every round has each of them once."""
    seen: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(ROUNDS):
        for key, call in calls.items():
            gc.collect()
            gc.disable()
            began = time.perf_counter_ns()
            for _ in range(CALLS):
                await call()
            seen[key].append((time.perf_counter_ns() - began) / CALLS)
            gc.enable()
    return {key: statistics.median(times) for key, times in seen.items()}


def costs(
    contenders: dict[str, object],
    nanoseconds: dict[tuple[str, str], float],
    group: str,
    base: float,
) -> str:
    ours = nanoseconds[group, next(iter(contenders))]
    rows = [
        [name, f"{cost:,.0f}", f"{cost / base:.1f}", f"{cost / ours:.2f}"]
        for name in contenders
        for cost in [nanoseconds[group, name]]
    ]
    return table(["", "ns a call", "of `await noop()`", "of the first"], rows)


async def lines(queue: Queue) -> str:
    """Let every waiter queue at once; the rest of the burst waits for the rate."""
    ideal = (queue.waiters - queue.burst) / queue.rate
    seen: dict[str, list[tuple[float, int]]] = {name: [] for name in queue.limiters}
    for _ in range(queue.rounds):
        for name, results in seen.items():
            results.append(await line(LINES[name](queue.rate, queue.burst), queue.waiters))
    rows = [
        [
            name,
            f"{statistics.median(elapsed for elapsed, _ in results):.3f}",
            f"{statistics.median(elapsed for elapsed, _ in results) / ideal:.2f}",
            max(inversions for _, inversions in results),
        ]
        for name, results in seen.items()
    ]
    return table(["", f"s (ideal {ideal:.3f})", "of ideal", "served out of order"], rows)


async def line(acquire: Acquire, waiters: int) -> tuple[float, int]:
    """Return the seconds until all are served, and how often one came before its turn."""
    served: list[int] = []

    async def wait(number: int) -> None:
        await acquire()
        served.append(number)

    # What earlier contenders left behind is not to be walked through during this one.
    gc.collect()
    gc.freeze()
    began = time.perf_counter()
    await asyncio.gather(*(wait(number) for number in range(waiters)))
    elapsed = time.perf_counter() - began
    gc.unfreeze()
    return elapsed, sum(after < before for before, after in itertools.pairwise(served))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
