from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.infrastructure.resilience import (
    ConfigurationError,
    Event,
    RateLimitExceededError,
    SlidingWindow,
    TokenBucket,
)
from shared.infrastructure.resilience.events import LimiterStoreChanged
from shared.infrastructure.resilience.limits.redis_limiter import RedisLimiter
from shared.infrastructure.resilience.limits.redis_scripts import TOKEN_BUCKET
from shared.infrastructure.resilience.limits.redis_store import RedisConfig, RedisStore
from tests.redis_server import RedisServer, most_within, processes, serving_redis, until

ROOT = Path(__file__).parents[2]
# What a limiter is given in these tests to wait for an answer; enough on a busy machine.
PATIENCE = 0.5


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A server that the test may kill."""
    with serving_redis() as server:
        yield server


class Notes:
    """A listener that remembers whether limits were shared after each event."""

    def __init__(self) -> None:
        self.shared: list[bool] = []
        self.reasons: list[str] = []

    def __call__(self, event: Event) -> None:
        assert isinstance(event, LimiterStoreChanged)
        self.shared.append(event.available)
        self.reasons.append(event.reason)


def plenty() -> TokenBucket:
    return TokenBucket(10000.0, burst=1000)


async def test_no_call_fails_and_none_overtakes_when_redis_is_killed_and_comes_back(
    redis: RedisServer,
) -> None:
    notes = Notes()
    served: list[int] = []

    async def call(limiter: RedisLimiter, number: int) -> None:
        await limiter.acquire()
        served.append(number)

    async with processes(
        redis, 1, lambda: TokenBucket(200.0, burst=1), timeout=PATIENCE, listener=notes
    ) as (limiter,):
        calls = [asyncio.create_task(call(limiter, number)) for number in range(100)]
        await until(lambda: len(served) >= 10)
        redis.kill()
        await until(lambda: notes.shared == [False])
        assert limiter.snapshot()["shared"] is False
        await until(lambda: len(served) >= 40)
        redis.restart()
        await until(lambda: notes.shared == [False, True])
        await asyncio.gather(*calls)
        assert served == list(range(100))
        assert limiter.snapshot()["shared"] is True
        assert limiter.snapshot()["granted"] == 100


async def test_losing_and_finding_redis_costs_at_most_one_window(redis: RedisServer) -> None:
    notes = Notes()
    granted: list[tuple[float, float]] = []
    now = asyncio.get_running_loop().time

    async def hammer(limiter: RedisLimiter) -> None:
        while len(granted) < 120:
            await limiter.acquire()
            granted.append((now(), 1.0))

    async with processes(
        redis, 1, lambda: SlidingWindow(10, 0.2), timeout=PATIENCE, listener=notes
    ) as (limiter,):
        hammers = [asyncio.create_task(hammer(limiter)) for _ in range(5)]
        await until(lambda: len(granted) >= 35)
        redis.kill()
        await until(lambda: len(granted) >= 70)
        redis.restart()
        await asyncio.gather(*hammers)
    assert notes.shared == [False, True]
    assert most_within(granted, 0.2) <= 20


async def test_a_redis_that_stops_answering_is_done_without_until_it_answers_again(
    redis: RedisServer,
) -> None:
    notes = Notes()
    async with processes(redis, 1, plenty, timeout=PATIENCE, listener=notes) as (limiter,):
        await limiter.acquire()
        with redis.admin() as admin:
            admin.client_pause(2000)
            await asyncio.gather(*(limiter.acquire() for _ in range(50)))
            assert notes.shared == [False]
            assert "no answer within" in notes.reasons[0]
            await until(lambda: notes.shared == [False, True])
            # What comes from here on is answers to questions of now, not to those of then.
            for _ in range(5):
                await limiter.acquire()
            assert notes.shared == [False, True]
            assert limiter._last_granted_at > 0


async def test_writes_that_are_refused_count_as_away(redis: RedisServer) -> None:
    notes = Notes()
    async with processes(redis, 1, plenty, timeout=PATIENCE, listener=notes) as (limiter,):
        await limiter.acquire()
        with redis.admin() as admin:
            admin.replicaof("127.0.0.1", "1")
            await limiter.acquire()
            assert notes.shared == [False]
            admin.replicaof("NO", "ONE")
        await until(lambda: notes.shared == [False, True])


async def test_connections_that_are_reset_fail_no_call(redis: RedisServer) -> None:
    async with processes(redis, 2, plenty, timeout=PATIENCE) as limiters:
        for _ in range(20):
            calls = [limiter.acquire() for limiter in limiters for _ in range(5)]
            with redis.admin() as admin:
                admin.client_kill_filter(_type="normal", skipme=True)
            await asyncio.gather(*calls)
        await until(lambda: all(limiter.snapshot()["shared"] for limiter in limiters))


async def test_scripts_that_redis_forgets_are_sent_again(redis: RedisServer) -> None:
    notes = Notes()
    async with processes(redis, 1, plenty, timeout=PATIENCE, listener=notes) as (limiter,):
        with redis.admin() as admin:
            await limiter.acquire()
            assert admin.script_exists(TOKEN_BUCKET.sha) == [True]
            admin.script_flush()
            await limiter.acquire()
            assert admin.script_exists(TOKEN_BUCKET.sha) == [True]
    assert notes.shared == []


async def test_a_redis_that_is_not_there_yet_is_done_without(redis: RedisServer) -> None:
    redis.kill()
    notes = Notes()
    async with processes(redis, 1, plenty, timeout=PATIENCE, listener=notes) as (limiter,):
        await limiter.acquire()
        permit = await limiter.reserve(5)
        permit.commit(3)
        assert limiter.snapshot()["granted"] == 4
        limiter.pause(0.05)
        assert not await limiter.try_acquire()
        assert notes.shared == [False]
        redis.restart()
        await until(lambda: notes.shared == [False, True])
        await limiter.acquire()


async def test_what_replaces_redis_begins_as_full_as_the_limit_was(redis: RedisServer) -> None:
    async with processes(redis, 2, lambda: SlidingWindow(10, 60.0), timeout=PATIENCE) as (
        limiter,
        other,
    ):
        await other.acquire(7)
        assert await limiter.try_acquire()
        redis.kill()
        assert [await limiter.try_acquire() for _ in range(3)] == [True, True, False]
        assert limiter.utilization == pytest.approx(1.0, abs=0.01)
        with pytest.raises(RateLimitExceededError):
            await limiter.acquire(max_wait=1.0)


async def test_what_was_granted_without_redis_is_charged_when_it_is_back(
    redis: RedisServer,
) -> None:
    redis.kill()
    async with processes(redis, 2, lambda: SlidingWindow(10, 60.0), timeout=PATIENCE) as limiters:
        for limiter in limiters:
            await limiter.acquire(4)
        redis.restart()
        await until(lambda: all(limiter.snapshot()["shared"] for limiter in limiters))
        await until(lambda: all(limiter._talk and limiter._talk.done() for limiter in limiters))
        assert await limiters[0].try_acquire(2)
        assert not await limiters[1].try_acquire()


async def test_a_pause_outlives_redis_both_ways(redis: RedisServer) -> None:
    async with processes(redis, 2, plenty, timeout=PATIENCE) as (limiter, other):
        limiter.pause(60.0)
        await until(lambda: limiter._heard[0] == 1.0)
        assert not await other.try_acquire()
        redis.kill()
        assert not await other.try_acquire()
        assert other.snapshot()["shared"] is False
        redis.restart()
        await until(lambda: other.snapshot()["shared"])
        await until(lambda: other._talk is not None and other._talk.done())
        with redis.admin() as admin:
            assert admin.hget("morgan:bucket:{test}", "held")


async def test_a_process_may_keep_to_its_part_meanwhile(redis: RedisServer) -> None:
    redis.kill()
    part = TokenBucket(0.001, burst=2)
    async with processes(redis, 1, plenty, timeout=PATIENCE, meanwhile=part) as (limiter,):
        assert [await limiter.try_acquire() for _ in range(3)] == [True, True, False]
        part.refund(2)
        # More than the part ever holds is the whole part.
        assert await limiter.try_acquire(500)


async def test_a_wrong_password_is_an_error_and_not_a_limit_that_is_none(
    redis: RedisServer,
) -> None:
    with redis.admin() as admin:
        admin.config_set("requirepass", "right")
    notes = Notes()
    async with processes(redis, 1, plenty, timeout=PATIENCE, listener=notes) as (limiter,):
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="check url, user, password"):
                await limiter.acquire()
    url = redis.redis_url.replace("//", "//:right@")
    async with RedisStore(RedisConfig(url=url)) as store:
        await RedisLimiter("test", plenty(), store).acquire()
    assert notes.shared == []
    assert "right" not in repr(RedisConfig(url=url))


async def test_a_database_or_a_key_that_cannot_be_used_is_an_error(redis: RedisServer) -> None:
    async with RedisStore(RedisConfig(url=f"{redis.redis_url}/99", timeout=PATIENCE)) as store:
        with pytest.raises(ConfigurationError, match="check url"):
            await RedisLimiter("test", plenty(), store).acquire()
    with redis.admin() as admin:
        admin.set("morgan:bucket:{test}", "something else")
    async with processes(redis, 1, plenty, timeout=PATIENCE) as (limiter,):
        with pytest.raises(ConfigurationError, match="WRONGTYPE"):
            await limiter.acquire()


async def test_a_redis_that_appears_and_wants_a_password_is_an_error_from_then_on(
    redis: RedisServer,
) -> None:
    redis.kill()
    async with processes(redis, 1, plenty, timeout=PATIENCE) as (limiter,):
        await limiter.acquire()
        redis.restart()
        with redis.admin() as admin:
            admin.config_set("requirepass", "right")
            admin.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: limiter.snapshot()["shared"])
        with pytest.raises(ConfigurationError, match="check url, user, password"):
            await limiter.acquire()


async def test_a_password_that_is_changed_later_counts_as_away(redis: RedisServer) -> None:
    notes = Notes()
    async with processes(redis, 1, plenty, timeout=PATIENCE, listener=notes) as (limiter,):
        await limiter.acquire()
        with redis.admin() as admin:
            admin.config_set("requirepass", "new")
            admin.client_kill_filter(_type="normal", skipme=True)
        await limiter.acquire()
        assert notes.shared == [False]


async def test_a_limiter_ends_with_its_store(redis: RedisServer) -> None:
    async with processes(redis, 1, lambda: TokenBucket(1.0, 1), timeout=PATIENCE) as (limiter,):
        await limiter.acquire()
        waiter = asyncio.create_task(limiter.acquire())
        await until(lambda: limiter._turn is not None)
    with pytest.raises(ConfigurationError, match="closed"):
        await limiter.acquire()
    with pytest.raises(ConfigurationError, match="closed"):
        await waiter


async def test_whoever_waits_for_an_answer_when_the_store_is_closed_is_told_so(
    redis: RedisServer,
) -> None:
    with redis.admin() as admin:
        async with processes(redis, 1, plenty, timeout=60.0) as (limiter,):
            await limiter.acquire()
            admin.client_pause(60000)
            waiter = asyncio.create_task(limiter.acquire())
            await until(lambda: bool(limiter._store._tasks))
        with pytest.raises(ConfigurationError, match="closed"):
            await waiter


HAMMER = """
import asyncio, sys
from shared.infrastructure.resilience import SlidingWindow
from shared.infrastructure.resilience.limits.redis_limiter import RedisLimiter
from shared.infrastructure.resilience.limits.redis_store import RedisConfig, RedisStore

async def main(url):
    async with RedisStore(RedisConfig(url=url, timeout=5.0)) as store:
        limiter = RedisLimiter("hammer", SlidingWindow(50, 0.5), store)
        await limiter.try_acquire()
        print(limiter._last_granted_at, flush=True)
        sys.stdin.readline()

        async def hammer():
            async with asyncio.timeout(2.0):
                while True:
                    await limiter.acquire()
                    print(limiter._last_granted_at)

        await asyncio.gather(*(hammer() for _ in range(10)), return_exceptions=True)

asyncio.run(main(sys.argv[1]))
"""


def test_processes_that_hammer_together_keep_to_the_limit_together(redis: RedisServer) -> None:
    command = [sys.executable, "-W", "error", "-c", HAMMER, redis.redis_url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    hammers = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for hammer in hammers:
            stack.enter_context(hammer)
            stack.callback(hammer.kill)
        counts: list[list[float]] = [[float(hammer.stdout.readline())] for hammer in hammers]
        for hammer in hammers:
            hammer.stdin.write("\n")
            hammer.stdin.flush()
        for hammer, count in zip(hammers, counts, strict=True):
            out, _ = hammer.communicate(timeout=60)
            count += [float(line) for line in out.split()]
    granted = [(instant, 1.0) for count in counts for instant in count]
    assert most_within(granted, 0.5e6 - 2) <= 50
    # Two seconds are four windows, and every process has its turns.
    assert len(granted) >= 150
    assert min(len(count) for count in counts) >= 20
