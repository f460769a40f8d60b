"""One adapter for each rate limiter: at most ten in a second, then wait."""

# ruff: noqa: PLC0415 - a library that is missing must not keep the others from running

import asyncio
import time
from collections.abc import Awaitable, Callable

from shared.infrastructure.resilience import SlidingWindow, SystemClock

LIMIT = 10
PERIOD = 1.0

Acquire = Callable[[int], Awaitable[object]]
"""Wait until so many permits are taken."""


class NoWeightsError(Exception):
    """The library cannot take several permits at once."""


def only_single(acquire: Callable[[], Awaitable[object]]) -> Acquire:
    async def single(cost: int) -> object:
        if cost != 1:
            raise NoWeightsError("no weights")
        return await acquire()

    return single


async def morgan() -> Acquire:
    return SlidingWindow(LIMIT, PERIOD, clock=SystemClock()).acquire


async def aiolimiter() -> Acquire:
    import aiolimiter as peer

    return peer.AsyncLimiter(LIMIT, PERIOD).acquire


async def pyrate_limiter() -> Acquire:
    import pyrate_limiter as peer

    limiter = peer.Limiter(peer.Rate(LIMIT, int(PERIOD * 1000)))

    async def acquire(cost: int) -> object:
        return await limiter.try_acquire_async("service", cost)

    return acquire


async def limits() -> Acquire:
    from limits import RateLimitItemPerSecond
    from limits.aio.storage import MemoryStorage
    from limits.aio.strategies import MovingWindowRateLimiter

    limiter = MovingWindowRateLimiter(MemoryStorage())
    item = RateLimitItemPerSecond(LIMIT)

    async def acquire(cost: int) -> None:
        # It has no waiting call; its users poll.
        while not await limiter.hit(item, "service", cost=cost):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)

    return acquire


async def asyncio_throttle() -> Acquire:
    import asyncio_throttle as peer

    return only_single(peer.Throttler(LIMIT, PERIOD).acquire)


async def nopanic() -> Acquire:
    import nopanic as peer

    limiter = peer.rate_limit(
        LIMIT,
        PERIOD,
        clock=lambda: time.monotonic(),  # noqa: PLW0108 - looked up late, to see virtual time
    )

    async def acquire() -> None:
        async with limiter.guard():
            return

    return only_single(acquire)


LIMITERS = {
    "ours": morgan,
    "aiolimiter": aiolimiter,
    "pyrate-limiter": pyrate_limiter,
    "limits": limits,
    "asyncio-throttle": asyncio_throttle,
    "nopanic": nopanic,
}
PACKAGES = {
    "pyrate-limiter": "pyrate_limiter",
    "limits": "limits.aio.strategies",
    "asyncio-throttle": "asyncio_throttle",
}
