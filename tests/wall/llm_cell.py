"""One cell of the wall: a scenario met in one way, alone or by a crowd, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from shared.infrastructure.balancing.errors import StreamInterruptedError
from tests.raw_server import until
from tests.wall.leaks import _sockets
from tests.wall.llm_hosts import Pace, Site, Turn, serving
from tests.wall.llm_scenarios import Mark, Scenario
from tests.wall.llm_ways import CONTINUE_WAY, OPENAI_STREAMS, RESTART_WAY, Outcome, Way

# What a machine with two busy cores may add to a deadline.
NOISE = 2.0
# A loop that stood still for this share of the time limit says nothing about a client.
LAG = 0.25
TRIES = 4


@dataclass
class Cell:
    """What came of a scenario.

    Attributes:
        marks: Of each call.
        reasons: Why they are no better, the calls that passed left out.
        left: What was still there when all was over.
        lag: Seconds for which the event loop stood still, at most.
    """

    marks: list[Mark] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    lag: float = 0.0

    @property
    def worst(self) -> Mark:
        return min(self.marks)

    def __str__(self) -> str:
        reasons = sorted(set(self.reasons))[:5]
        counts = ", ".join(
            f"{self.marks.count(mark)} {mark.name}" for mark in sorted(set(self.marks))
        )
        return f"{counts}; lag {self.lag:.3f} s; " + "; ".join([*reasons, *self.left])


def least(scenario: Scenario, way: Way) -> Mark:
    """Return what has to come of a scenario in this way."""
    if not way.is_streamed:
        return scenario.plain
    if way is RESTART_WAY:
        return scenario.restarted
    bars = [scenario.live] * way.is_live + [scenario.relayed] * (way in OPENAI_STREAMS)
    return min(bars, default=Mark.PASS)


async def meet(scenario: Scenario, way: Way, sizes: Sequence[tuple[int, int]]) -> None:
    """Make sure that a scenario is met, by so many hosts and calls at once each."""
    cell = await settled(scenario, way, sizes)
    assert cell.worst >= least(scenario, way), str(cell)
    assert not cell.left, str(cell)


async def settled(scenario: Scenario, way: Way, sizes: Sequence[tuple[int, int]]) -> Cell:
    """Return what comes of a scenario.

    A machine that stood still meanwhile proves nothing: then time is slowed, and it is done again.
    """
    for tried in range(TRIES):
        pace = Pace().slowed(2.0**tried)
        cell = await run(scenario, way, sizes, pace)
        is_good = cell.worst >= least(scenario, way) and not cell.left
        if is_good or cell.lag < LAG * pace.limit:
            break
    return cell


async def run(scenario: Scenario, way: Way, sizes: Sequence[tuple[int, int]], pace: Pace) -> Cell:
    """Let clients, one for so many hosts and calls at once each, meet a scenario side by side."""
    cell = Cell()
    pace = Pace(pace.limit, pace.limit * scenario.limits)
    leftovers = Leftovers()
    async with lag_of(cell):
        sites = (_run(scenario, way, hosts, times, pace, cell) for hosts, times in sizes)
        await asyncio.gather(*sites)
    cell.left += await leftovers.found()
    return cell


async def _run(
    scenario: Scenario, way: Way, hosts: int, times: int, pace: Pace, cell: Cell
) -> None:
    site = Site(hosts, scenario.fault, scenario.where, others=scenario.others, pace=pace)
    names = [f"call {number}" for number in range(times)]
    async with serving(site):
        async with way.opened(site.urls, pace) as client:
            calls = (way.call(client, name, pace.deadline + NOISE) for name in names)
            outcomes = await asyncio.gather(*calls)
            for name, outcome in zip(names, outcomes, strict=True):
                mark, reason = judge(scenario, way, outcome, site, name)
                cell.marks.append(mark)
                cell.reasons += [reason] * (mark < Mark.PASS)
            cell.left += await under_way(site, client)
        cell.left += await still_open(site)


def judge(
    scenario: Scenario, way: Way, outcome: Outcome, site: Site, name: str
) -> tuple[Mark, str]:
    """Say what came of a call, and why it is no better."""
    turns = site.turns[name]
    if outcome.error is None:
        return _judge_text(scenario, way, outcome, turns, site.primary)
    if not isinstance(outcome.error, way.clean):
        return Mark.FAIL, f"unclean after {outcome.took:.2f} s: {outcome.error!r}"
    return _judge_error(scenario, outcome.error, outcome.text, turns)


def _judge_text(
    scenario: Scenario, way: Way, outcome: Outcome, turns: Sequence[Turn], primary: int | None
) -> tuple[Mark, str]:
    if scenario.raises:
        return Mark.FAIL, "no error"
    told = [turn for turn in turns if turn.text == outcome.text]
    if not told:
        return Mark.FAIL, f"text of no attempt: {_shown(outcome.text, turns)}"
    mine = (told[0].model, told[0].usage)
    if way is not CONTINUE_WAY and (outcome.model, outcome.usage) != mine:
        return Mark.PARTIAL, f"model or usage of another: {outcome.model}, {outcome.usage}"
    breach = scenario.breach(turns, primary)
    return (Mark.PARTIAL, breach) if breach else (Mark.PASS, "")


def _judge_error(
    scenario: Scenario, error: Exception, text: str, turns: Sequence[Turn]
) -> tuple[Mark, str]:
    said = f"{type(error).__name__}: {error}"[:300]
    if scenario.never and scenario.never in str(error):
        return Mark.FAIL, f"not the first error: {said}"
    if text and not any(turn.text.startswith(text) for turn in turns):
        return Mark.FAIL, f"no beginning of an attempt: {_shown(text, turns)}"
    if isinstance(error, StreamInterruptedError) and error.partial != text:
        return Mark.FAIL, f"not what was delivered: {error.partial!r} for {text!r}"
    if scenario.raises is not None and _is(error, scenario.raises) and not text:
        breach = scenario.breach(turns, None)
        return (Mark.SAFE, breach) if breach else (Mark.PASS, "")
    return Mark.SAFE, said


def _is(error: Exception, kind: type[Exception]) -> bool:
    """Say whether an error is of a kind, or another library's name for it: that of its status."""
    return isinstance(error, kind) or getattr(error, "status_code", None) == 400


def _shown(text: str, turns: Sequence[Turn]) -> str:
    return f"{text[:80]!r} ({len(text)}) for {[turn.text[:80] for turn in turns]}"


@pytest.fixture(scope="module", autouse=True)
def no_long_collections() -> Iterator[None]:
    """Keep what is loaded out of garbage collections: one of them all takes as long as a limit."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Leftovers:
    """What there is before, to be compared with what there is after."""

    def __init__(self) -> None:
        self._sockets = set(_sockets())
        self._tasks = asyncio.all_tasks()

    async def found(self) -> list[str]:
        """Say what is open although everything is closed."""
        left = []
        if not await _soon(lambda: not set(_sockets()) - self._sockets):
            left.append(f"{len(set(_sockets()) - self._sockets)} sockets")
        if not await _soon(lambda: not asyncio.all_tasks() - self._tasks):
            left.append(f"tasks: {asyncio.all_tasks() - self._tasks}")
        return left


async def under_way(site: Site, client: Any) -> list[str]:
    """Say what goes on although nobody waits for it any more."""
    left = []
    if not await _soon(lambda: not any(site.playing)):
        left.append(f"hosts still answer: {site.playing}")
    if hasattr(client, "get_metrics") and not await _soon(lambda: not _in_flight(client)):
        left.append(f"in flight: {_in_flight(client)}")
    return left


async def still_open(site: Site) -> list[str]:
    """Say which connections are open although the client is closed."""
    if await _soon(lambda: not any(host.connections for host in site.hosts)):
        return []
    return [f"connections: {[host.connections for host in site.hosts]}"]


def _in_flight(client: Any) -> int:
    metrics = client.get_metrics()
    hosts = sum(host["in_flight"] for host in metrics["hosts"].values())
    return int(hosts + metrics["totals"]["in_flight"])


async def _soon(condition: Any) -> bool:
    with contextlib.suppress(AssertionError):
        await until(condition)
    return bool(condition())


@asynccontextmanager
async def lag_of(cell: Cell, every: float = 0.01) -> AsyncIterator[None]:
    """Take note of how long the event loop stands still."""

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(every)
            cell.lag = max(cell.lag, time.monotonic() - before - every)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
