"""S28, S32 and S33: crowds before slow hosts, hosts that are drained, and ports that close."""

import asyncio
import time
from typing import Any

import pytest

from shared.infrastructure.balancing.config import BalanceConfig
from shared.infrastructure.balancing.distributed_llm import DistributedLLMClient
from shared.infrastructure.balancing.hosts import HostLimits
from shared.infrastructure.balancing.strategies import LoadBalancingStrategy
from shared.infrastructure.http import ConnectionPoolConfig, TimeoutConfig
from shared.infrastructure.resilience import BulkheadConfig
from tests.wall.llm_cell import Leftovers, judge, still_open, under_way
from tests.wall.llm_hosts import CHAT, Pace, Site, after, heading, serving, spread, well
from tests.wall.llm_scenarios import Mark, Scenario
from tests.wall.llm_ways import (
    BUFFER_WAY,
    CHAT_WAY,
    LIVE_WAY,
    RESTART_WAY,
    Way,
    hosts_of,
    options_of,
    our_pool,
)

PATIENT = Pace(limit=20.0, deadline=60.0)
EXACT = Scenario("exact", well)
STREAMS = [LIVE_WAY, RESTART_WAY, BUFFER_WAY]
each_stream = pytest.mark.parametrize("way", STREAMS, ids=[way.name for way in STREAMS])
ROUTED = [CHAT_WAY, LIVE_WAY]
each_kind = pytest.mark.parametrize("way", ROUTED, ids=[way.name for way in ROUTED])
BOUNDS: dict[str, dict[str, Any]] = {
    "in flight": {},
    "bulkhead": {"bulkhead_config": BulkheadConfig(max_concurrent=8, max_queue=1000)},
    "connections": {
        "pool_config": ConnectionPoolConfig(max_connections=8, max_keepalive_connections=8),
        "timeout_config": TimeoutConfig(pool=30.0, total=60.0),
    },
}
ANSWERS = 0.06


def exact(site: Site, way: Way, names: list[str], outcomes: list[Any]) -> None:
    for name, outcome in zip(names, outcomes, strict=True):
        mark, reason = judge(EXACT, way, outcome, site, name)
        assert mark is Mark.PASS, reason


@each_kind
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("count", [2, 3])
async def test_120_at_once_are_more_than_there_is_room_for(
    way: Way, bound: str, count: int
) -> None:
    """The line takes longer than a first token may: it is ours, and no host is to blame for it."""
    pace = Pace(limit=20 * ANSWERS, deadline=60.0)
    site = Site(count, after(ANSWERS * 6), "all", pace=pace)
    limits = HostLimits(max_in_flight=8 if bound == "in flight" else None)
    options = {
        **options_of(pace),
        "balance_config": BalanceConfig(queue_timeout=50.0),
        **BOUNDS[bound],
    }
    async with serving(site):
        async with DistributedLLMClient(hosts_of(site.urls, limits=limits), **options) as pool:
            names = [f"call {number}" for number in range(120)]
            outcomes = await asyncio.gather(*(way.call(pool, name, 55.0) for name in names))
            exact(site, way, names, outcomes)
            assert len(site.all_turns()) <= 1.2 * 120
            assert {turn.host for turn in site.all_turns()} == set(range(count))
            for host in pool.get_metrics()["hosts"].values():
                assert host["circuit_breaker"]["window_failures"] == 0
                assert host["state"] == "ready"
            assert not await under_way(site, pool)
        assert not await still_open(site)


async def begun(site: Site, pool: Any, way: Way, names: list[str]) -> list[asyncio.Task[Any]]:
    """Begin streams, and return once every host that was asked has begun to answer."""
    tasks = [asyncio.ensure_future(way.call(pool, name, 55.0)) for name in names]
    await site.hosts[0].until(lambda: len(site.all_turns()) == len(names))
    return tasks


@each_stream
async def test_a_drain_waits_for_nine_live_streams(way: Way) -> None:
    site = Site(3, spread(0.01), "all", pace=PATIENT)
    before = Leftovers()
    async with serving(site):
        async with our_pool(site.urls, PATIENT) as pool:
            names = [f"live {number}" for number in range(9)]
            live = await begun(site, pool, way, names)
            assert sum(turn.host == 0 for turn in site.all_turns()) == 3
            drain = asyncio.ensure_future(pool.drain_host("host-0", 50.0))
            await asyncio.sleep(0)
            late = [f"late {number}" for number in range(12)]
            outcomes = await asyncio.gather(*(way.call(pool, name, 55.0) for name in late))
            exact(site, way, late, outcomes)
            assert {turns[0].host for name, turns in site.turns.items() if name in late} == {1, 2}
            assert await drain
            exact(site, way, names, await asyncio.gather(*live))
            assert all(len(site.turns[name]) == 1 for name in names)
            pool.enable_host("host-0")
            assert not await under_way(site, pool)
        assert not await still_open(site)
    assert not await before.found()


@each_stream
async def test_a_drain_that_takes_too_long_says_so_and_cuts_nobody_off(way: Way) -> None:
    site = Site(2, spread(0.01), "all", pace=PATIENT)
    async with serving(site), our_pool(site.urls, PATIENT) as pool:
        names = [f"live {number}" for number in range(4)]
        live = await begun(site, pool, way, names)
        assert not await pool.drain_host("host-0", 0.01)
        exact(site, way, names, await asyncio.gather(*live))


@each_stream
async def test_live_streams_of_a_host_that_takes_no_more_go_on(way: Way) -> None:
    site = Site(3, spread(0.01), "all", pace=PATIENT)
    async with serving(site), our_pool(site.urls, PATIENT) as pool:
        names = [f"live {number}" for number in range(9)]
        live = await begun(site, pool, way, names)
        await site.hosts[0].refuse()
        late = [f"late {number}" for number in range(30)]
        outcomes = await asyncio.gather(*(way.call(pool, name, 55.0) for name in late))
        exact(site, way, late, outcomes)
        exact(site, way, names, await asyncio.gather(*live))
        assert all(len(site.turns[name]) == 1 for name in names)
        assert not await under_way(site, pool)


STRATEGIES = [
    LoadBalancingStrategy.ROUND_ROBIN,
    LoadBalancingStrategy.LEAST_LOADED,
    LoadBalancingStrategy.P2C,
    LoadBalancingStrategy.PEAK_EWMA,
    LoadBalancingStrategy.CONSISTENT_HASH,
    LoadBalancingStrategy.PREFIX,
]


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_port_that_closes_under_load_costs_no_answer(strategy: Any) -> None:
    site = Site(3, after(0.01), "all", pace=PATIENT)
    before = Leftovers()
    async with serving(site):
        options = {**options_of(PATIENT), "strategy": strategy}
        async with DistributedLLMClient(hosts_of(site.urls), **options) as pool:
            names = [f"call {number}" for number in range(150)]
            began = time.monotonic()

            async def at(number: int) -> Any:
                await asyncio.sleep(began + number / 150 - time.monotonic())
                return await CHAT_WAY.call(pool, names[number], 55.0)

            calls = [asyncio.ensure_future(at(number)) for number in range(150)]
            await asyncio.gather(*calls[:50])
            await site.hosts[0].die()
            outcomes = await asyncio.gather(*calls)
            exact(site, CHAT_WAY, names, outcomes)
            assert not await under_way(site, pool)
        assert not await still_open(site)
    assert not await before.found()


@pytest.mark.parametrize(
    "strategy", [LoadBalancingStrategy.CONSISTENT_HASH, LoadBalancingStrategy.PREFIX]
)
@pytest.mark.parametrize("dies", [True, False], ids=["dies", "refuses"])
async def test_calls_that_belong_together_move_together(strategy: Any, dies: bool) -> None:
    """S27: six requests with the same beginning, and then their host is gone."""
    site = Site(3, well, "all", pace=PATIENT)
    beginning = "You are a patient teacher of geometry. " * 60
    async with serving(site):
        options = {**options_of(PATIENT), "strategy": strategy}
        async with DistributedLLMClient(hosts_of(site.urls), **options) as pool:

            async def asked(number: int) -> int:
                request = {**heading(f"call {number}", beginning), "user": "ann"}
                answer = await pool.post(CHAT, json=request)
                last = site.turns[f"call {number}"][-1]
                assert answer.json()["choices"][0]["message"]["content"] == last.text
                return last.host

            before = [await asked(number) for number in range(6)]
            assert len(set(before)) == 1
            home = site.hosts[before[0]]
            await (home.die() if dies else home.refuse())
            after_it = [await asked(number) for number in range(6, 12)]
            if dies:
                assert before[0] not in after_it
                assert len(set(after_it[1:])) == 1
