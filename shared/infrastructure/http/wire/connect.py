"""Open connections: addresses, sockets, TLS; and say in words why it did not work."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TypeVar

from shared.infrastructure.http.dial import Address, AddressCheck, first_open, resolve
from shared.infrastructure.http.errors import (
    ConnectFailedError,
    ConnectTimeoutError,
    TLSFailedError,
)
from shared.infrastructure.http.tls_failure import tls_reason, tls_words
from shared.infrastructure.http.wire.alpn import HTTP1
from shared.infrastructure.http.wire.origin import Origin
from shared.infrastructure.resilience import Clock, ConfigurationError
from shared.infrastructure.resilience.timeout import TimeLimit

P = TypeVar("P", bound=asyncio.Protocol)

_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH})


class Connector:
    """Opens connections.

    Args:
        tls: Returns the context for https; asked once, when the first such connection is opened.
            Its ALPN protocols are set to `alpn`.
        uds: Path of a Unix socket to connect to, whatever the host; None connects over TCP.
        check_address: Called with each IP address of a host before any of them is connected to;
            what it raises ends the request. A guard against requests to internal addresses.
        alpn: Versions of HTTP offered with TLS, the preferred one first.
        clock: Source of monotonic time.
    """

    def __init__(
        self,
        tls: Callable[[], ssl.SSLContext],
        *,
        uds: str | None,
        check_address: AddressCheck | None,
        alpn: Sequence[str] = HTTP1,
        clock: Clock,
    ) -> None:
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._uds = uds
        self._check_address = check_address
        self._alpn = list(alpn)
        self._clock = clock
        if uds is not None and not hasattr(socket, "AF_UNIX"):
            raise ConfigurationError("this platform has no Unix sockets; leave `uds` out")

    async def connect(self, origin: Origin, make: Callable[[], P], limit: float | None) -> P:
        """Return what `make` made for a connection to `origin`; TLS, if it has TLS, is established.

        Raises:
            ConnectFailedError: There is none to be had; the message says why.
            TLSFailedError: Nor will there be: TLS has an objection that stays.
            ConnectTimeoutError: Nor was there within `limit` seconds.
        """
        try:
            if limit is None:
                return await self._connect(origin, make)
            with TimeLimit(limit, ConnectTimeoutError, "connecting", self._clock):
                return await self._connect(origin, make)
        except (OSError, UnicodeError) as exc:
            raise _failure(exc, origin.authority) from exc

    async def _connect(self, origin: Origin, make: Callable[[], P]) -> P:
        loop = asyncio.get_running_loop()
        tls = self._context() if origin.is_tls else None
        sock = await self._socket(origin)
        name = origin.host if origin.is_tls else None
        if tls is not None:
            # Each time, and only now: others may use the same context and offer something else.
            tls.set_alpn_protocols(self._alpn)
        # Whatever goes wrong from here on, asyncio closes the socket.
        if self._uds is None:
            made = await loop.create_connection(make, sock=sock, ssl=tls, server_hostname=name)
        else:
            made = await loop.create_unix_connection(make, sock=sock, ssl=tls, server_hostname=name)
        return made[1]

    async def _socket(self, origin: Origin) -> socket.socket:
        if self._uds is not None:
            return await _open((socket.AF_UNIX, (self._uds,)))
        addresses = await resolve(origin.host, origin.port, self._check_address)
        return await first_open(addresses, _open, socket.socket.close, self._clock)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = self._make_tls()
        return self._tls


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


def _failure(exc: OSError | UnicodeError, host: str) -> ConnectFailedError:
    if isinstance(exc, ssl.SSLError) and (reason := tls_reason(exc, in_handshake=True)):
        return TLSFailedError(reason, host=host)
    return ConnectFailedError(_reason(exc), host=host)


def _reason(exc: OSError | UnicodeError) -> str:
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {tls_words(exc)}"
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
