"""Three thousand requests cut short at any point leave no slot, no task and no socket behind."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.infrastructure.http import ConnectionPoolConfig
from tests.wall.answers import Version
from tests.wall.crowd import SLOTS, crowd_site, random_delays
from tests.wall.flavours import FLAVOURS, NAMES, Flavour, busy, opened
from tests.wall.leaks import Census, gone_soon

POOL = ConnectionPoolConfig(max_connections=SLOTS, max_keepalive_connections=SLOTS)
CANCELS = 3000
ROUND = 100


async def by_hand(client: Any, rng: random.Random) -> int:
    """Cancel every request of a round."""
    tasks = [asyncio.create_task(client.get("/bad")) for _ in range(ROUND)]
    for task in rng.sample(tasks, ROUND):
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() * 0.001)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return sum(task.cancelled() for task in tasks)


async def by_timeout(client: Any, rng: random.Random) -> int:
    """Give every request of a round a few milliseconds."""

    async def get(seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await client.get("/bad")
        except TimeoutError:
            return True
        return False

    return sum(await asyncio.gather(*(get(rng.random() * 0.02) for _ in range(ROUND))))


async def by_task_group(client: Any, rng: random.Random) -> int:
    """Let one task of a group fail among requests."""

    async def fail() -> None:
        await asyncio.sleep(rng.random() * 0.02)
        raise LookupError

    tasks: list[asyncio.Task[Any]] = []
    with contextlib.suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(client.get("/bad")) for _ in range(ROUND)]
            group.create_task(fail())
    return sum(task.cancelled() for task in tasks)


async def by_leaving(client: Any, rng: random.Random) -> int:
    """Leave the bodies of a round unread, or cancel their readers."""

    async def read() -> None:
        async with client.stream("GET", "/bad") as response:
            if rng.random() < 0.5:
                await response.aread()

    tasks = [asyncio.create_task(read()) for _ in range(ROUND)]
    await asyncio.sleep(rng.random() * 0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return sum(task.cancelled() for task in tasks)


WAYS: list[Callable[[Any, random.Random], Awaitable[int]]] = [
    by_hand,
    by_timeout,
    by_task_group,
    by_leaving,
]


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("flavour", FLAVOURS, ids=NAMES)
async def test_3000_cancellations_leave_nothing_behind(flavour: Flavour, version: Version) -> None:
    rng = random.Random(11)
    options = {"pool_config": POOL, "retry_config": None}
    async with crowd_site(version, random_delays(7, 0.004)) as site:
        census = Census()
        async with opened(flavour, site.server.url, **options) as client:
            cancelled = 0
            while cancelled < CANCELS:
                cancelled += sum([await way(client, rng) for way in WAYS])
            assert (await client.get("/good")).text == "ok"
            await gone_soon(lambda: busy(client))
            assert client.get_status()["in_flight"] == 0
            assert client.get_status()["circuit_breaker"]["window_failures"] == 0
            fresh = await asyncio.gather(*(client.get("/good") for _ in range(3 * SLOTS)))
            assert {response.status_code for response in fresh} == {200}
        await census.nothing_is_left(site.server)
