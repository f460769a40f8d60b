"""A request under way, seen from both ends: the connection that carries it and whoever reads."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

from shared.infrastructure.http.errors import UpstreamError
from shared.infrastructure.http.wire.answer import Received

A = TypeVar("A", bound=Received)

Limits = Mapping[str, float | None]
"""Seconds for `connect`, `read`, `write` and `pool`; None or nothing is no limit."""


class Carrier(Protocol):
    """What an exchange needs of its connection."""

    async def wait(
        self, exchange: Any, limit: float | None, /, *, is_writing: bool = False
    ) -> None:
        """Wait for the next event; silence for longer than `limit` seconds is one too."""
        ...

    def read_on(self, exchange: Any, /) -> None:
        """Read again, after a pause that the unread body made necessary."""
        ...

    def give_up(self, exchange: Any, /) -> None:
        """End an exchange that nobody wants any more."""
        ...

    def give_up_soon(self, exchange: Any, /) -> None:
        """Do so from any thread."""
        ...


class Exchange(Generic[A]):
    """A request under way: its answer, and whoever waits for the next event.

    Attributes:
        answer: The answer so far.
        closes: The request asks for the connection to be closed after it.
        connection: What carries it; None as soon as it is over, well or not.
        error: How it failed, if it did.
        is_sent: The whole request is with the kernel.
        waiter: Resolved at the next event.
    """

    __slots__ = ("answer", "closes", "connection", "error", "is_sent", "waiter")

    def __init__(self, answer: A, connection: Carrier, *, closes: bool) -> None:
        self.answer = answer
        self.closes = closes
        self.connection: Carrier | None = connection
        self.error: UpstreamError | None = None
        self.is_sent = False
        self.waiter: asyncio.Future[None] | None = None

    @property
    def wants_more(self) -> bool:
        """Whether going on sending makes sense: nothing broke, and no error was answered."""
        return self.connection is not None and self.answer.status < 400

    def wake(self) -> None:
        """Tell whoever waits that something happened."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def end(self, error: UpstreamError | None = None) -> None:
        """Part from the connection."""
        self.connection = None
        self.error = error
        self.answer.drop()
        self.wake()


class ReceivedBody:
    """The body of an answer, in the hands of whoever reads it.

    One that is dropped unread is closed with a ResourceWarning.

    Args:
        exchange: Whose answer it is.
        limit: Seconds of silence tolerated while reading; None is no limit.
    """

    __slots__ = ("__weakref__", "_exchange", "_limit")

    def __init__(self, exchange: Exchange[Any], limit: float | None) -> None:
        self._exchange = exchange
        self._limit = limit

    def take(self) -> bytes:
        """Return what has arrived since the last time, without waiting."""
        exchange = self._exchange
        data: bytes = exchange.answer.take()
        if data and exchange.connection is not None:
            exchange.connection.read_on(exchange)
        return data

    async def more(self) -> bytes:
        """Return the next bytes; none at the end.

        Raises:
            UpstreamError: The rest will not come.
        """
        exchange = self._exchange
        while not exchange.answer.chunks:
            connection = exchange.connection
            if connection is None:
                if exchange.error is not None:
                    raise exchange.error
                return b""
            try:
                await connection.wait(exchange, self._limit)
            except BaseException:
                connection.give_up(exchange)
                raise
        return self.take()

    def close(self) -> None:
        """Want no more of it; if more was to come, what carries it is ended."""
        if self._exchange.connection is not None:
            self._exchange.connection.give_up(self._exchange)

    def __del__(self) -> None:
        connection = self._exchange.connection
        if connection is not None:
            connection.give_up_soon(self._exchange)
            warnings.warn("a response was neither read nor closed", ResourceWarning, 1, self)
