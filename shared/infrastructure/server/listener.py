"""What the connections of a socket share: the application, the limits, and one timer for all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time

from shared.infrastructure.server.app import App
from shared.infrastructure.server.connection import Connection
from shared.infrastructure.server.reader import BodyCount

_log = logging.getLogger(__name__)

BACKLOG = 2048
_LONGEST_INTERVAL = 1.0
# Seconds that a 503 may take to be sent in the end.
_LAST_WORDS = 1.0
# Turns of the event loop from a connection that was accepted to its first one here.
_TURNS = 3


class Listener:
    """A listening socket and its connections.

    Args:
        app: Answers.

    Attributes:
        app: It.
        loop: The event loop.
        now: Monotonic time.
        bodies: Bytes of bodies on their way here, or not answered yet.
        is_closing: Whether no more connections are accepted.
        connections: Those that are open.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.loop = asyncio.get_running_loop()
        self.now = time.monotonic
        self.bodies = BodyCount()
        self.connections: set[Connection] = set()
        config = app.config
        shortest = min(config.header_timeout, config.body_timeout, config.keep_alive)
        self._interval = min(_LONGEST_INTERVAL, shortest / 4)
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.is_closing = False
        self._empty = asyncio.Event()

    async def start(self, sock: socket.socket) -> None:
        """Accept connections."""
        self._server = await self.loop.create_server(
            lambda: Connection(self), sock=sock, backlog=BACKLOG
        )
        self._check()

    @property
    def surplus(self) -> float:
        """How many connections there are beyond the bound; from 0 on a further one is too many."""
        limit = self.app.config.max_connections
        return -math.inf if limit is None else len(self.connections) - limit

    def close(self) -> None:
        """Accept no more connections, and hang up each one that is, or becomes, idle."""
        self.app.draining = self.is_closing = True
        if self._server is not None:
            # After a turn, in which those that were just accepted become connections.
            self.loop.call_soon(self._server.close)
        for connection in list(self.connections):
            if connection.is_idle:
                connection.hang_up()

    def left(self, connection: Connection) -> None:
        """Take note that a connection is gone."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def closed(self) -> None:
        """Wait until the last connection is gone."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        while self.connections:
            self._empty.clear()
            await self._empty.wait()

    async def abandon(self) -> None:
        """Answer 503 to whatever is still in flight."""
        for connection in list(self.connections):
            connection.give_up()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closed(), _LAST_WORDS)
        for connection in list(self.connections):
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        # One timer for all: starting and stopping one a request costs more than a look at each.
        self._timer = self.loop.call_later(self._interval, self._check)
        now = self.now()
        for connection in list(self.connections):
            try:
                connection.check(now)
            except Exception:
                _log.exception("a connection failed")
                connection.abort()
