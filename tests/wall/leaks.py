"""Find what a client left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from tests.raw_server import RawServer, until


class Census:
    """What there is before a client is opened, to be compared with what there is after it."""

    def __init__(self) -> None:
        self._sockets = set(_sockets())
        self._tasks = asyncio.all_tasks()

    def sockets(self, server: RawServer) -> list[str]:
        """Return the new sockets that are not the server's own."""
        port = int(server.url.rpartition(":")[2])
        return [
            f"{mine} -> {server.url}"
            for inode, mine in _sockets().items()
            if inode not in self._sockets and mine != port
        ]

    def tasks(self, server: RawServer) -> set[asyncio.Task[object]]:
        """Return the new tasks that are not the server's own."""
        return asyncio.all_tasks() - self._tasks - set(server._tasks)

    async def nothing_is_left(self, server: RawServer) -> None:
        """Give it a moment, and say what is there if something stays."""
        await gone_soon(lambda: self.sockets(server))
        await gone_soon(lambda: self.tasks(server))


async def gone_soon(left: Callable[[], object]) -> None:
    """Wait until there is nothing left; say what there is if that never comes."""
    with contextlib.suppress(AssertionError):
        await until(lambda: not left())
    assert not left()


def _sockets() -> dict[int, int]:
    """Return the TCP port of each open socket by its inode; 0 for other kinds."""
    found = {}
    for path in Path("/dev/fd").iterdir():
        with contextlib.suppress(OSError):
            status = os.fstat(int(path.name))
            if stat.S_ISSOCK(status.st_mode):
                with socket.socket(fileno=os.dup(int(path.name))) as one:
                    address = one.getsockname()
                found[status.st_ino] = address[1] if isinstance(address, tuple) else 0
    return found
