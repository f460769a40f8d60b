"""S29: a caller who goes, at any moment and in any way, leaves nothing behind."""

import asyncio
import contextlib
import gc
import random
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from tests.wall.llm_cell import Leftovers, judge, still_open, under_way
from tests.wall.llm_faults import breaks_off, by_form, status
from tests.wall.llm_hosts import Fault, Pace, Site, heading, serving, spread, well
from tests.wall.llm_scenarios import Mark, Scenario
from tests.wall.llm_ways import BUFFER_WAY, LIVE_WAY, OURS, RESTART_WAY, Way, our_pool

PATIENT = Pace(limit=5.0, deadline=30.0)
GOOD = Scenario("S29 afterwards", well)
FOLLOW_UPS = 40
FAULTS: dict[str, Fault] = {
    "all is well": well,
    "503": status(503),
    "stream cut": by_form(stream=breaks_off("cut"), plain=status(500)),
}


class CancelledAt:
    """Awaits something, and cancels its own task when that is suspended for the k-th time."""

    def __init__(self, coroutine: Any, k: int) -> None:
        self._coroutine = coroutine
        self._left = k
        self.is_cancelled = False

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._coroutine.__await__()
        thrown: BaseException | None = None
        while True:
            try:
                waited = inner.send(None) if thrown is None else inner.throw(thrown)
            except StopIteration as stop:
                return stop.value
            thrown = None
            self._left -= 1
            if self._left == 0:
                task = asyncio.current_task()
                assert task is not None
                self.is_cancelled = task.cancel()
            try:
                yield waited
            except BaseException as error:
                thrown = error


async def nothing_is_left(site: Site, pool: Any, way: Way) -> None:
    """Make sure that nothing goes on, and that those who come later are served."""
    assert not await under_way(site, pool)
    site.heal()
    calls = [way.call(pool, f"later {n}", 30.0) for n in range(FOLLOW_UPS)]
    for number, outcome in enumerate(await asyncio.gather(*calls)):
        mark, reason = judge(GOOD, way, outcome, site, f"later {number}")
        assert mark is Mark.PASS, reason
    assert not await under_way(site, pool)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("way", OURS, ids=[way.name for way in OURS])
async def test_cancelled_at_any_suspension(way: Way, fault: Fault) -> None:
    site = Site(2, fault, "first", pace=PATIENT)
    before = Leftovers()
    async with serving(site):
        async with our_pool(site.urls, PATIENT) as pool:
            k, is_cancelled = 0, True
            while is_cancelled:
                k += 1
                call = CancelledAt(way.call(pool, f"call {k}", 30.0), k)
                done = await asyncio.gather(_awaited(call), return_exceptions=True)
                is_cancelled = call.is_cancelled
                assert isinstance(done[0], asyncio.CancelledError) is is_cancelled, (k, done)
                assert not await under_way(site, pool), k
            assert k > 2
            await nothing_is_left(site, pool, way)
        assert not await still_open(site)
    assert not await before.found()


async def _awaited(call: CancelledAt) -> Any:
    return await call


@pytest.mark.parametrize("way", OURS, ids=[way.name for way in OURS])
async def test_cancelled_by_the_clock(way: Way) -> None:
    rng = random.Random(29)
    site = Site(3, by_form(stream=spread(0.001), plain=well), "all", pace=PATIENT)
    before = Leftovers()
    async with serving(site):
        async with our_pool(site.urls, PATIENT) as pool:

            async def hurried(number: int) -> bool:
                try:
                    async with asyncio.timeout(rng.random() * 0.05):
                        await way.ask(pool, heading(f"call {number}"), _nobody())
                except TimeoutError:
                    return True
                return False

            left = await asyncio.gather(*(hurried(number) for number in range(60)))
            assert any(left)
            await nothing_is_left(site, pool, way)
        assert not await still_open(site)
    assert not await before.found()


def _nobody() -> Any:
    class Nobody:
        def hears(self, chunk: Any) -> None: ...
        def reads(self, answer: Any) -> None: ...

    return Nobody()


async def by_break(pool: Any, name: str, recovery: str) -> None:
    async with pool.stream(heading(name), recovery=recovery) as chunks:
        async for chunk in chunks:
            if chunk.text:
                break


async def by_return(pool: Any, name: str, recovery: str) -> None:
    """Abandon the generator."""
    async for chunk in pool.stream(heading(name), recovery=recovery):
        if chunk.text:
            return


async def by_error(pool: Any, name: str, recovery: str) -> None:
    with contextlib.suppress(LookupError):
        async with pool.stream(heading(name), recovery=recovery) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    raise LookupError


async def unread(pool: Any, name: str, recovery: str) -> None:
    """Open the stream, and read nothing."""
    async with pool.stream(heading(name), recovery=recovery):
        pass


async def unasked(pool: Any, name: str, recovery: str) -> None:
    """Make a stream, and do nothing with it."""
    pool.stream(heading(name), recovery=recovery)


Leave = Callable[[Any, str, str], Awaitable[None]]
LEAVING: list[Leave] = [by_break, by_return, by_error, unread, unasked]


@pytest.mark.parametrize("way", [LIVE_WAY, RESTART_WAY, BUFFER_WAY], ids=lambda way: way.name)
@pytest.mark.parametrize("leave", LEAVING, ids=[leave.__name__ for leave in LEAVING])
async def test_streams_that_are_left(leave: Leave, way: Way) -> None:
    site = Site(2, spread(0.002), "all", pace=PATIENT)
    before = Leftovers()
    recovery = way.name.rpartition(" ")[2]
    async with serving(site):
        async with our_pool(site.urls, PATIENT) as pool:
            await asyncio.gather(*(leave(pool, f"call {n}", recovery) for n in range(10)))
            gc.collect()
            await nothing_is_left(site, pool, way)
        assert not await still_open(site)
    assert not await before.found()


async def test_a_pool_that_stops_ends_its_calls() -> None:
    site = Site(2, spread(0.01), "all", pace=PATIENT)
    before = Leftovers()
    async with serving(site):
        async with our_pool(site.urls, PATIENT) as pool:
            calls = [LIVE_WAY.call(pool, f"call {n}", 30.0) for n in range(8)]
            tasks = [asyncio.ensure_future(call) for call in calls]
            await site.hosts[0].until(lambda: len(site.all_turns()) == 8)
        outcomes = await asyncio.gather(*tasks)
        assert all(outcome.error is not None for outcome in outcomes)
        assert all(isinstance(outcome.error, LIVE_WAY.clean) for outcome in outcomes)
        assert not await still_open(site)
    assert not await before.found()
