"""Which version of HTTP a connection with TLS speaks: what ALPN has agreed on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from shared.infrastructure.http.wire.connection import Connection
from shared.infrastructure.http.wire.http2_connection import Http2Connection
from shared.infrastructure.http.wire.link import Link

HTTP1 = ("http/1.1",)
EITHER = ("h2", "http/1.1")


class Negotiation(asyncio.Protocol):
    """Stands in for a connection until the handshake is over.

    Args:
        make: Makes the connection, of the class that speaks what was agreed on.

    Attributes:
        link: The connection.
    """

    link: Link

    def __init__(self, make: Callable[[type[Link]], Link]) -> None:
        self._make = make

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tls = transport.get_extra_info("ssl_object")
        agreed = None if tls is None else tls.selected_alpn_protocol()
        self.link = self._make(Http2Connection if agreed == "h2" else Connection)
        cast("asyncio.Transport", transport).set_protocol(self.link)
        self.link.connection_made(transport)
