"""Open connections: addresses, sockets, TLS; and say in words why it did not work."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Any

from shared.infrastructure.http.errors import ConnectFailedError, ConnectTimeoutError
from shared.infrastructure.http.wire.connection import Connection, tls_reason
from shared.infrastructure.http.wire.origin import Origin
from shared.infrastructure.resilience import Clock, ConfigurationError
from shared.infrastructure.resilience.timeout import TimeLimit

Address = tuple[socket.AddressFamily, tuple[Any, ...]]

# RFC 8305, section 8: how long an address may take before the next one is tried beside it.
_HEAD_START = 0.25
_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH})


class Connector:
    """Opens connections.

    Args:
        tls: Returns the context for https; asked once, when the first such connection is opened.
            Its ALPN protocols are set to HTTP/1.1.
        uds: Path of a Unix socket to connect to, whatever the host; None connects over TCP.
        check_address: Called with each IP address of a host before any of them is connected to;
            what it raises ends the request. A guard against requests to internal addresses.
        clock: Source of monotonic time.
    """

    def __init__(
        self,
        tls: Callable[[], ssl.SSLContext],
        *,
        uds: str | None,
        check_address: Callable[[str], None] | None,
        clock: Clock,
    ) -> None:
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._uds = uds
        self._check_address = check_address
        self._clock = clock
        if uds is not None and not hasattr(socket, "AF_UNIX"):
            raise ConfigurationError("this platform has no Unix sockets; leave `uds` out")

    async def connect(
        self, origin: Origin, make: Callable[[], Connection], limit: float | None
    ) -> Connection:
        """Return a connection to `origin` with TLS, if it has TLS, established.

        Raises:
            ConnectFailedError: There is none to be had; the message says why.
            ConnectTimeoutError: Nor was there within `limit` seconds.
        """
        try:
            if limit is None:
                return await self._connect(origin, make)
            with TimeLimit(limit, ConnectTimeoutError, "connecting", self._clock):
                return await self._connect(origin, make)
        except (OSError, UnicodeError) as exc:
            raise ConnectFailedError(_reason(exc), host=origin.authority) from exc

    async def _connect(self, origin: Origin, make: Callable[[], Connection]) -> Connection:
        loop = asyncio.get_running_loop()
        tls = self._context() if origin.is_tls else None
        sock = await self._socket(origin)
        name = origin.host if origin.is_tls else None
        # Whatever goes wrong from here on, asyncio closes the socket.
        if self._uds is None:
            made = await loop.create_connection(make, sock=sock, ssl=tls, server_hostname=name)
        else:
            made = await loop.create_unix_connection(make, sock=sock, ssl=tls, server_hostname=name)
        return made[1]

    async def _socket(self, origin: Origin) -> socket.socket:
        if self._uds is not None:
            return await _open((socket.AF_UNIX, (self._uds,)))
        addresses = await _resolve(origin.host, origin.port)
        if self._check_address is not None:
            for _, (ip, *_rest) in addresses:
                self._check_address(ip)
        return await _open_first(addresses, self._clock)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = self._make_tls()
        # Each time: others may use the same context and offer HTTP/2.
        self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


async def _resolve(host: str, port: int) -> list[Address]:
    """Return the addresses of `host`, families in turn, the preferred one first."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, (host, port))]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    by_family: dict[socket.AddressFamily, list[Address]] = {}
    for family, _, _, _, address in found:
        by_family.setdefault(family, []).append((family, address))
    in_turn = chain.from_iterable(zip_longest(*by_family.values()))
    return [address for address in in_turn if address is not None]


async def _open(address: Address) -> socket.socket:
    family, target = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, target)
        else:
            await asyncio.get_running_loop().sock_connect(sock, target[0])
    except BaseException:
        sock.close()
        raise
    return sock


async def _open_first(addresses: Sequence[Address], clock: Clock) -> socket.socket:
    """Return a socket to the first address that answers (RFC 8305, "happy eyeballs")."""
    if len(addresses) == 1:
        return await _open(addresses[0])
    untried = list(reversed(addresses))
    racing: set[asyncio.Task[socket.socket]] = set()
    failure: BaseException = OSError("no address")
    try:
        while untried or racing:
            if untried:
                racing.add(asyncio.create_task(_open(untried.pop())))
            for task in await _first_done(racing, clock if untried else None):
                racing.discard(task)
                if (error := task.exception()) is None:
                    return task.result()
                failure = error
    finally:
        for task in racing:
            task.cancel()
            task.add_done_callback(_close_late)
    raise failure


async def _first_done(
    racing: set[asyncio.Task[socket.socket]], clock: Clock | None
) -> list[asyncio.Task[socket.socket]]:
    """Wait for one of `racing`; with a clock, only for the head start."""
    woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: object = None) -> None:
        if not woken.done():
            woken.set_result(None)

    timer = None if clock is None else clock.call_later(_HEAD_START, wake)
    for task in racing:
        task.add_done_callback(wake)
    try:
        await woken
    finally:
        if timer is not None:
            timer.cancel()
        for task in racing:
            task.remove_done_callback(wake)
    return [task for task in racing if task.done()]


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _reason(exc: OSError | UnicodeError) -> str:
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {tls_reason(exc)}"
    if isinstance(exc, UnicodeError):
        return "no address for this name: it is not a valid one"
    if isinstance(exc, ConnectionRefusedError):
        return "connection refused"
    if isinstance(exc, ConnectionResetError):
        return "the service closed the connection within the TLS handshake"
    words = exc.strerror or str(exc) or type(exc).__name__
    if isinstance(exc, socket.gaierror):
        return f"no address for this name: {words}"
    return f"unreachable: {words}" if exc.errno in _UNREACHABLE else words
