"""How lines of several processes take turns, and what becomes of a turn that nobody takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest

from shared.infrastructure.resilience import ConfigurationError, SlidingWindow, TokenBucket
from shared.infrastructure.resilience.limits import redis_limiter
from shared.infrastructure.resilience.limits.redis_scripts import Script
from tests.redis_server import RedisServer, granted, processes, talked, until


def slow() -> TokenBucket:
    return TokenBucket(2.0, burst=1)


def soon() -> TokenBucket:
    """Return a bucket that, once empty, gives out a permit of 2 or less in advance."""
    return TokenBucket(50.0, burst=2)


def lines(server: RedisServer) -> int:
    with server.admin() as admin:
        return len(json.loads(admin.hget("morgan:bucket:{test}", "lines") or "[]"))


async def test_lines_take_turns_however_long_they_are(redis: RedisServer) -> None:
    async with processes(redis, 2, lambda: TokenBucket(20.0, burst=1)) as (crowd, pair):
        await crowd.acquire()
        many = [asyncio.create_task(granted(crowd)) for _ in range(10)]
        await until(lambda: crowd._turn is not None)
        last = max(await asyncio.gather(granted(pair), granted(pair)))
        before = [task for task in many if task.done() and task.result() < last]
        assert 1 <= len(before) <= 4
        for task in many:
            task.cancel()


async def test_a_line_that_has_emptied_holds_up_nobody(redis: RedisServer) -> None:
    async with processes(redis, 2, slow) as (limiter, other):
        await limiter.acquire()
        waiter = asyncio.create_task(limiter.acquire())
        await until(lambda: limiter._turn is not None)
        behind = asyncio.create_task(other.acquire())
        await until(lambda: other._turn is not None)
        assert lines(redis) == 2
        waiter.cancel()
        await talked(limiter)
        assert lines(redis) == 1
        await behind
        await talked(other)
        assert lines(redis) == 0


async def test_a_line_whose_process_has_died_is_passed_over(redis: RedisServer) -> None:
    async with processes(redis, 1, slow) as (limiter,):
        await limiter.acquire()
        async with processes(redis, 1, slow) as (dead,):
            waiter = asyncio.create_task(dead.acquire())
            await until(lambda: dead._turn is not None)
        await limiter.acquire()
        await talked(limiter)
        assert lines(redis) == 0
        with pytest.raises(ConfigurationError, match="closed"):
            await waiter


async def test_a_permit_given_back_elsewhere_brings_a_turn_forward(redis: RedisServer) -> None:
    async with processes(redis, 2, lambda: SlidingWindow(2, 600.0)) as (limiter, other):
        permit = await limiter.reserve(2)
        waiter = asyncio.create_task(other.acquire())
        await until(lambda: other._turn is not None)
        permit.commit(1)
        await waiter
        assert not await limiter.try_acquire()


async def test_who_stands_behind_a_heavy_waiter_that_leaves_is_served_at_once(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_limiter, "_LOOK", 1000.0)
    async with processes(redis, 1, lambda: TokenBucket(0.01, burst=5)) as (limiter,):
        await limiter.acquire(4)
        heavy = asyncio.create_task(limiter.acquire(5))
        await until(lambda: limiter._turn is not None)
        light = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        heavy.cancel()
        async with asyncio.timeout(20):
            await light


async def test_a_permit_in_advance_is_given_back_if_nobody_is_there_to_take_it(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with processes(redis, 1, soon) as (limiter,):
        told: list[object] = []
        run = limiter._store.run

        async def listen(script: Script, keys: Sequence[str], args: Sequence[object]) -> list[int]:
            told.extend(args)
            return await run(script, keys, args)

        await limiter.acquire(2)
        waiter = asyncio.create_task(limiter.acquire())
        await until(lambda: limiter._place is not None or waiter.done())
        place = limiter._place
        monkeypatch.setattr(limiter._store, "run", listen)
        waiter.cancel()
        await talked(limiter)
        # On a machine that is busy enough the waiter was served before it could leave.
        assert place is None or told[-3:] == [1, 1.0, place.at]


async def test_a_permit_in_advance_is_not_for_whoever_wants_more(redis: RedisServer) -> None:
    async with processes(redis, 1, soon) as (limiter,):
        await limiter.acquire(2)
        light = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        heavy = asyncio.create_task(limiter.acquire(2))
        await until(lambda: limiter._place is not None or light.done())
        light.cancel()
        limiter._turn_has_come()  # in the very tick, before the light one has left
        assert not heavy.done()
        assert limiter.snapshot()["granted"] <= 3
        await heavy
        assert limiter.snapshot()["granted"] in (4, 5)


async def test_who_leaves_before_the_answer_comes_holds_up_nobody(redis: RedisServer) -> None:
    async with processes(redis, 1, slow) as (limiter,):
        await limiter.acquire()
        await talked(limiter)
        waiter = asyncio.create_task(limiter.acquire())
        while not limiter._store._tasks:  # noqa: ASYNC110 - the question is not on its way yet
            await asyncio.sleep(0)
        waiter.cancel()
        await talked(limiter)
        assert lines(redis) == 0
