"""S31: a hedge goes to another host, and whichever answers first is the answer."""

import asyncio

import pytest

from shared.infrastructure.resilience import HedgeConfig
from tests.wall.llm_cell import Leftovers, judge, still_open, under_way
from tests.wall.llm_faults import status
from tests.wall.llm_hosts import Pace, Site, after, serving, well
from tests.wall.llm_scenarios import Mark, Scenario
from tests.wall.llm_ways import BUFFER_WAY, CHAT_WAY, LIVE_WAY, POST_WAY, RESTART_WAY, Way, our_pool

PATIENT = Pace(limit=20.0, deadline=60.0)
ALIKE = [CHAT_WAY, POST_WAY, LIVE_WAY, RESTART_WAY, BUFFER_WAY]
each_way = pytest.mark.parametrize("way", ALIKE, ids=[way.name for way in ALIKE])
hosts = pytest.mark.parametrize("count", [2, 3])
NEVER = after(15.0)
EXACT = Scenario("S31 hedging", well)


async def hedged(way: Way, site: Site, times: int, delay: float) -> tuple[int, int]:
    """Make so many calls; return how many hedges were sent, and how many attempts there were."""
    before = Leftovers()
    async with serving(site):
        config = HedgeConfig(delay=delay)
        async with our_pool(site.urls, PATIENT, hedge_config=config) as pool:
            names = [f"call {number}" for number in range(times)]
            outcomes = await asyncio.gather(*(way.call(pool, name, 14.0) for name in names))
            for name, outcome in zip(names, outcomes, strict=True):
                mark, reason = judge(EXACT, way, outcome, site, name)
                assert mark is Mark.PASS, reason
                assert len(site.turns[name]) <= 2
                assert len({turn.host for turn in site.turns[name]}) == len(site.turns[name])
            assert not await under_way(site, pool)
            metrics = pool.get_metrics()
            told = metrics["hosts"].values()
            # A loser that was let go is no answer, and no error.
            attempts = sum(host["request_count"] + host["cancelled_count"] for host in told)
            # A hedge may be let go before it has reached its host, or even has one.
            assert len(site.all_turns()) <= attempts <= times + metrics["totals"]["hedged_count"]
        assert not await still_open(site)
    assert not await before.found()
    return metrics["totals"]["hedged_count"], attempts


@each_way
@hosts
@pytest.mark.parametrize("times", [1, 50])
async def test_a_hedge_answers_for_a_host_that_does_not(way: Way, count: int, times: int) -> None:
    site = Site(count, NEVER, "primary", pace=PATIENT)
    sent, attempts = await hedged(way, site, times, 0.05)
    assert sent >= len({turn.call for turn in site.all_turns(site.primary) if not turn.number})
    assert attempts >= times


@each_way
@hosts
async def test_the_first_host_answers_in_spite_of_a_hedge(way: Way, count: int) -> None:
    site = Site(count, after(0.2), "first", others=NEVER, pace=PATIENT)
    assert await hedged(way, site, 1, 0.02) == (1, 2)


@each_way
async def test_a_hedge_that_fails_does_not_end_the_call(way: Way) -> None:
    site = Site(2, after(0.2), "first", others=status(500), pace=PATIENT)
    assert (await hedged(way, site, 1, 0.02))[0] == 1


@each_way
async def test_no_hedge_for_those_who_answer_in_time(way: Way) -> None:
    site = Site(2, well, "all", pace=PATIENT)
    assert await hedged(way, site, 50, 10.0) == (0, 50)
