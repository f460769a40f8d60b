"""An httpx client on the wire, which must have left nothing behind when it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from shared.infrastructure.http import WireTransport
from shared.infrastructure.http.config import ConnectionPoolConfig
from tests.raw_server import RawServer, Script, raw_server, turns

NOTHING = {"open": 0, "idle": 0, "connecting": 0, "waiting": 0}


class Wired(httpx.AsyncClient):
    """A client, its transport and the server it talks to."""

    def __init__(self, transport: WireTransport, server: RawServer, **options: Any) -> None:
        super().__init__(
            transport=transport, base_url=server.url, timeout=options.pop("timeout", 5.0)
        )
        self.wire = transport
        self.server = server

    def stats(self, *keys: str) -> list[int]:
        stats = self.wire.stats()
        return [stats[key] for key in keys]


def left_over(wire: WireTransport) -> dict[str, int]:
    return {key: value for key, value in wire.stats().items() if key in NOTHING}


@asynccontextmanager
async def wired(
    script: Script, *, most: int = 100, keep: int = 20, expiry: float = 5.0, **options: Any
) -> AsyncIterator[Wired]:
    pool = ConnectionPoolConfig(
        max_connections=most, max_keepalive_connections=keep, keepalive_expiry=expiry
    )
    timeout = options.pop("timeout", 5.0)
    async with raw_server(script) as server:
        before = asyncio.all_tasks()
        wire = WireTransport(pool, **options)
        async with Wired(wire, server, timeout=timeout) as client:
            yield client
        assert left_over(wire) == NOTHING
        await turns()  # a generator that was not read to its end is closed by a task
        new = asyncio.all_tasks() - before
        assert not [task for task in new if "_serve" not in repr(task)]
