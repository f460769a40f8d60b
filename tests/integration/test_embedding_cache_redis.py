"""The cache's part in Redis, against a real one that is killed, paused, filled and lied to."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator

import pytest

from services.embedding.caching import EmbeddingCache, MemoryTier, RedisTier
from services.embedding.caching.records import Kept, encode
from services.embedding.outcome import Embedded
from shared.infrastructure.resilience import ConfigurationError
from tests.cache_entries import DIMENSION, entries_of, entry_of, key_of, same
from tests.redis_server import RedisServer, serving_redis, until

# What a look-up may take in most of these tests; enough on a busy machine.
PATIENCE = 1.0
PREFIX = b"morgan:embedding:"


@pytest.fixture
def mortal() -> Iterator[RedisServer]:
    """A server that the test may kill."""
    with serving_redis() as server:
        yield server


@contextlib.asynccontextmanager
async def connected(
    server: RedisServer, *, timeout: float = PATIENCE, dimension: int = DIMENSION
) -> AsyncGenerator[RedisTier]:
    tier = RedisTier(server.redis_url, timeout=timeout)
    await tier.start(dimension)
    try:
        yield tier
    finally:
        await tier.aclose()


async def put(tier: RedisTier, numbers: range) -> None:
    for number in numbers:
        tier.put(key_of(number), Kept(entry_of(number)))
    await tier._behind.flush()


async def found(tier: RedisTier, count: int) -> list[int]:
    """Return which entries there are, all of them right."""
    there = await tier.fetch([key_of(number) for number in range(count)])
    numbers = [number for number in range(count) if key_of(number) in there]
    assert all(same(there[key_of(number)].entry, entry_of(number)) for number in numbers)
    return numbers


async def back(tier: RedisTier, count: int) -> None:
    """Wait until all entries are found again."""
    async with asyncio.timeout(20):
        while await found(tier, count) != list(range(count)):
            await put(tier, range(count))
            await asyncio.sleep(0.02)


async def test_processes_find_what_others_embedded(redis: RedisServer) -> None:
    async with connected(redis) as one, connected(redis) as other:
        await put(one, range(300))
        assert await found(other, 301) == list(range(300))
        counted = other.snapshot()
    assert (counted["hits"], counted["misses"], counted["failures"]) == (300, 1, 0)


@pytest.mark.parametrize("others", [(), (1, 2)], ids=["alone", "beside others"])
async def test_an_entry_that_no_record_can_hold_costs_no_other(
    redis: RedisServer, others: tuple[int, ...]
) -> None:
    async with connected(redis) as tier:
        tier.put(key_of(0), Kept(Embedded(entry_of(0).vector, -1, False)))
        for number in others:
            tier.put(key_of(number), Kept(entry_of(number)))
        await tier._behind.flush()
        assert await found(tier, 3) == list(others)
        counted = tier.snapshot()
        await put(tier, range(5, 6))
        assert key_of(5) in await tier.fetch([key_of(5)])
    assert (counted["dropped"], counted["waiting"], counted["failures"]) == (1, 0, 0)


async def test_what_is_found_is_kept_nearer(redis: RedisServer) -> None:
    async with connected(redis) as tier:
        await put(tier, range(3))
    cache = EmbeddingCache(MemoryTier(100, 2**20), [RedisTier(redis.redis_url, timeout=PATIENCE)])
    await cache.start(DIMENSION)
    await cache.fetch([key_of(number) for number in range(4)])
    assert all(same(cache.get(key_of(number)), entry_of(number)) for number in range(3))
    cache.put(entries_of(range(3, 5)))
    await cache.close()
    async with connected(redis) as tier:
        assert await found(tier, 6) == [0, 1, 2, 3, 4]


async def test_a_tier_that_was_closed_can_be_started_again(redis: RedisServer) -> None:
    async with connected(redis) as tier:
        await put(tier, range(3))
    assert await found(tier, 3) == []
    tier.put(key_of(4), Kept(entry_of(4)))
    await tier.start(DIMENSION)
    assert await found(tier, 5) == [0, 1, 2]
    await tier.aclose()


async def test_an_answer_that_makes_no_sense_is_a_miss(redis: RedisServer) -> None:
    async with connected(redis) as tier:
        await put(tier, range(3))
        for answer in ([], [b"one"], [None] * 9, 7, "text", None):

            async def answered(*_: object, answer: object = answer) -> object:
                return answer

            tier._client._client.execute_command = answered
            assert await found(tier, 3) == []
        assert tier.snapshot()["failures"] == 5  # then the circuit is open


async def test_entries_end_when_they_are_told_to(redis: RedisServer) -> None:
    now = 1e9
    tier = RedisTier(redis.redis_url, timeout=PATIENCE, wall=lambda: now)
    await tier.start(DIMENSION)
    tier.put(key_of(0), Kept(entry_of(0), ends=now + 500))
    tier.put(key_of(1), Kept(entry_of(1)))
    await tier.aclose()
    with redis.admin() as admin:
        assert 490 < admin.ttl(PREFIX + key_of(0)) <= 500
        assert admin.ttl(PREFIX + key_of(1)) == -1


@pytest.mark.parametrize(
    "value",
    [b"", b"short", b"\0" * 56, encode(key_of(2), Kept(entry_of(2)))],
    ids=["empty", "short", "zeros", "of another key"],
)
async def test_a_foreign_value_is_a_miss(redis: RedisServer, value: bytes) -> None:
    async with connected(redis) as tier:
        await put(tier, range(3))
        with redis.admin() as admin:
            admin.set(PREFIX + key_of(1), value)
        assert await found(tier, 3) == [0, 2]
        assert tier.snapshot()["corrupt"] == 1
        await put(tier, range(3))
        assert await found(tier, 3) == [0, 1, 2]


async def test_a_value_of_another_type_is_a_miss_and_is_replaced(redis: RedisServer) -> None:
    async with connected(redis) as tier:
        with redis.admin() as admin:
            admin.lpush(PREFIX + key_of(1), "a", "list")
        assert await found(tier, 3) == []
        await put(tier, range(3))
        assert await found(tier, 3) == [0, 1, 2]
        assert tier.snapshot()["failures"] == 0


async def test_vectors_of_another_dimension_are_misses(redis: RedisServer) -> None:
    async with connected(redis) as tier:
        await put(tier, range(2))
    async with connected(redis, dimension=DIMENSION + 1) as tier:
        assert await tier.fetch([key_of(0), key_of(1)]) == {}
        assert tier.snapshot()["corrupt"] == 2


async def test_no_call_fails_when_redis_is_killed_and_it_is_used_again_when_it_is_back(
    mortal: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "services")
    async with connected(mortal) as tier:
        await put(tier, range(5))
        mortal.kill()
        for _ in range(20):
            assert await found(tier, 5) == []
        await put(tier, range(5))
        lost = tier.snapshot()
        assert lost["circuit"] == "open"
        assert not lost["available"]
        assert lost["dropped"] == 5
        mortal.restart()
        await back(tier, 5)
        assert tier.snapshot()["available"]
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING, logging.INFO]


async def test_a_redis_that_is_not_there_yet_is_done_without(mortal: RedisServer) -> None:
    mortal.kill()
    async with connected(mortal) as tier:
        assert await found(tier, 3) == []
        mortal.restart()
        await back(tier, 3)


async def test_a_redis_that_stops_answering_costs_no_more_than_the_budget(
    redis: RedisServer,
) -> None:
    async with connected(redis, timeout=0.05) as tier:
        await put(tier, range(5))
        loop = asyncio.get_running_loop()
        with redis.admin() as admin:
            admin.client_pause(1500)
            taken: list[float] = []
            for _ in range(40):
                began = loop.time()
                await found(tier, 5)
                taken.append(loop.time() - began)
            assert tier.snapshot()["circuit"] == "open"
            # A few waited for the budget; the rest, behind an open circuit, for nothing.
            assert sorted(taken)[len(taken) // 2] < 0.02
            await back(tier, 5)


async def test_an_answer_that_comes_too_late_is_nobodys(redis: RedisServer) -> None:
    async with connected(redis, timeout=0.02) as tier:
        await put(tier, range(50))
        for round_ in range(5):
            with redis.admin() as admin:
                admin.client_pause(60)
            asked = [key_of(number) for number in range(round_, 50, 5)]
            there = await tier.fetch(asked)
            assert all(same(there[key].entry, entries_of(range(50))[key]) for key in there)
        await back(tier, 50)


async def test_a_redis_that_takes_no_writes_is_still_looked_into(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(redis) as tier:
        await put(tier, range(3))
        with redis.admin() as admin:
            admin.config_set("maxmemory", "1")
            try:
                for _ in range(10):
                    await put(tier, range(3, 6))
                assert await found(tier, 6) == [0, 1, 2]
                assert tier.snapshot()["available"]
                assert tier.snapshot()["dropped"] == 30
            finally:
                admin.config_set("maxmemory", "0")
        await put(tier, range(3, 6))
        assert await found(tier, 6) == list(range(6))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_connections_that_are_reset_fail_no_call(redis: RedisServer) -> None:
    async with connected(redis) as tier:
        for _ in range(10):
            calls = [found(tier, 5) for _ in range(10)]
            with redis.admin() as admin:
                admin.client_kill_filter(_type="normal", skipme=True)
            await asyncio.gather(*calls)
        await back(tier, 5)


async def test_callers_that_leave_take_nothing_from_others(redis: RedisServer) -> None:
    async with connected(redis) as tier:
        await put(tier, range(20))
        for turns in range(10):
            leaving = [asyncio.create_task(found(tier, 20)) for _ in range(10)]
            for _ in range(turns):
                await asyncio.sleep(0)
            staying = asyncio.create_task(found(tier, 20))
            for task in leaving:
                task.cancel()
            assert await staying == list(range(20))
        await until(lambda: not tier._exchanges)
        assert tier.snapshot()["failures"] == 0


@pytest.mark.parametrize(
    "url",
    ["redis://:ge/heim@localhost:6379", "http://:geheim@localhost", "redis://:geheim@[::1"],
)
def test_a_url_that_makes_no_sense_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        RedisTier(url)
    assert "heim" not in str(raised.value)
    assert raised.value.__suppress_context__


async def test_a_password_is_shown_nowhere(
    mortal: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with mortal.admin() as admin:
        admin.config_set("requirepass", "other")
    url = f"redis://:geheim@127.0.0.1:{mortal.port}"
    tier = RedisTier(url, timeout=PATIENCE)
    await tier.start(DIMENSION)
    for _ in range(10):
        assert await found(tier, 1) == []
    await put(tier, range(1))
    shown = f"{tier!r} {vars(tier)!r} {tier.snapshot()} {caplog.text}"
    assert "geheim" not in shown
    assert f"127.0.0.1:{mortal.port}" in caplog.text
    await tier.aclose()
