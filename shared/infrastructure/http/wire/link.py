"""A connection, whatever version of HTTP is spoken on it: its socket, and why that broke."""

from __future__ import annotations

import abc
import asyncio
import select
import ssl
from typing import Any, Protocol, cast

from shared.infrastructure.http.errors import (
    ReadFailedError,
    RemoteProtocolViolationError,
    TLSFailedError,
    UpstreamError,
    WriteFailedError,
)
from shared.infrastructure.http.tls_failure import tls_reason
from shared.infrastructure.http.wire.errors import StaleConnectionError
from shared.infrastructure.http.wire.exchange import Exchange, Limits
from shared.infrastructure.http.wire.origin import Origin
from shared.infrastructure.http.wire.request import Request
from shared.infrastructure.resilience import Clock

# A timer may fire that much early.
TICK = 0.001


class Owner(Protocol):
    """Whoever lends connections out."""

    def idle(self, connection: Link, /) -> None:
        """Take `connection` back; it may carry another exchange."""
        ...

    def retired(self, connection: Link, /) -> None:
        """Lend `connection` to nobody else; what it carries may go on."""
        ...

    def lost(self, connection: Link, /) -> None:
        """Take note that the socket of `connection` is closed."""
        ...


class Link(asyncio.Protocol, abc.ABC):
    """A connection to one origin.

    Args:
        origin: Where it leads.
        owner: Told when it is idle and when it is lost.
        clock: Source of monotonic time.
        max_head: Bytes that the head of an answer may have.

    Attributes:
        origin: Where it leads.
        is_busy: Lent out by its owner.
        idle_since: When it was last given back.
        carried: Exchanges begun on it.
        is_lost: Its socket is closed.
    """

    def __init__(self, origin: Origin, owner: Owner, clock: Clock, max_head: int) -> None:
        self.origin = origin
        self.is_busy = False
        self.idle_since = 0.0
        self.carried: int = 0
        self.is_lost = False
        self._owner = owner
        self._clock = clock
        self._max_head = max_head
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._is_full = False
        self._inbox: select.poll | None = None

    @abc.abstractmethod
    async def send(self, request: Request, limits: Limits) -> Exchange[Any]:
        """Send a request and wait for the head of its answer.

        Whatever ends this early, cancellation included, ends the exchange.

        Raises:
            UpstreamError: The exchange failed.
            LocalProtocolViolationError: The body has not the length its head declares.
        """

    @property
    def is_usable(self) -> bool:
        """Whether a request can be sent on it, as far as is known."""
        return self._transport is not None and not self._transport.is_closing()

    def is_quiet(self) -> bool:
        """Tell whether it is usable and nothing has come in since the last answer.

        A busy loop may not have seen yet that the service closed it, or sent what nobody asked for.
        """
        return self.is_usable and not self._unseen()

    def _unseen(self) -> int:
        """Return what `select.poll` says of the socket: bytes nobody has read yet, and its end."""
        if self._inbox is None and self._transport is not None and hasattr(select, "poll"):
            self._inbox = select.poll()
            sock = self._transport.get_extra_info("socket")
            self._inbox.register(sock, select.POLLIN | getattr(select, "POLLRDHUP", 0))
        found = () if self._inbox is None else self._inbox.poll(0)
        return found[0][1] if found else 0

    def close(self, reason: str = "the connection was closed") -> None:
        """Close the socket within a turn of the loop; what is on it fails for `reason`."""
        if self._transport is not None:
            # Not `close`, which would wait for a peer that may have stopped listening.
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every event loop's transports are subclasses.
        self._transport = cast("asyncio.Transport", transport)
        # So `_is_full` means that the kernel has not yet taken everything.
        self._transport.set_write_buffer_limits(high=1, low=0)

    def pause_writing(self) -> None:
        self._is_full = True


def broken(
    exc: Exception | None, *, has_begun: bool, is_kept: bool, is_sent: bool
) -> UpstreamError:
    """Return what the end of a connection means to an exchange on it.

    Args:
        exc: Why it ended; None if the service closed it.
        has_begun: A part of the answer is there.
        is_kept: The connection had carried another exchange before.
        is_sent: The whole request is with the kernel.
    """
    reason = "the service closed the connection" if exc is None else str(exc)
    if has_begun:
        return ReadFailedError(f"{reason}, within its answer")
    if is_kept:
        return StaleConnectionError(f"{reason}, which had been kept, without answering")
    if isinstance(exc, ssl.SSLError) and (why := tls_reason(exc, in_handshake=False)):
        return TLSFailedError(why)
    if not is_sent:
        return WriteFailedError(f"{reason}, within the request")
    if exc is None:
        return RemoteProtocolViolationError(f"{reason} without answering")
    return ReadFailedError(f"{reason}, before it answered")
