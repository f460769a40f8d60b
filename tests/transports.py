"""Every way to the network that the SDK has: its own wire and the native transports."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import httpx
import httpx2

from shared.infrastructure.http import WireTransport
from shared.infrastructure.http.dial import AddressCheck
from shared.infrastructure.http.httpx2 import WireTransport as WireTransport2


class Way(NamedTuple):
    """A library and a transport of it.

    Attributes:
        library: Whose client and errors go with it.
        make: Returns a transport with the context given; the wire takes a guard too.
        version: What it speaks, as an answer tells it.
    """

    library: ModuleType
    make: Callable[[ssl.SSLContext, AddressCheck | None], Any]
    version: str


def _native(library: ModuleType, *, http2: bool) -> Way:
    def make(tls: ssl.SSLContext, _check: AddressCheck | None) -> Any:
        return library.AsyncHTTPTransport(verify=tls, http2=http2)

    return Way(library, make, "HTTP/2" if http2 else "HTTP/1.1")


def _wire(library: ModuleType, kind: type[Any], *, http2: bool) -> Way:
    def make(tls: ssl.SSLContext, check: AddressCheck | None) -> Any:
        return kind(tls=tls, check_address=check, http2=http2)

    return Way(library, make, "HTTP/2" if http2 else "HTTP/1.1")


WIRES = {
    "wire of httpx, HTTP/1.1": _wire(httpx, WireTransport, http2=False),
    "wire of httpx, HTTP/2": _wire(httpx, WireTransport, http2=True),
    "wire of httpx2, HTTP/1.1": _wire(httpx2, WireTransport2, http2=False),
    "wire of httpx2, HTTP/2": _wire(httpx2, WireTransport2, http2=True),
}
WAYS = {
    **WIRES,
    "httpx, HTTP/1.1": _native(httpx, http2=False),
    "httpx, HTTP/2": _native(httpx, http2=True),
    "httpx2, HTTP/1.1": _native(httpx2, http2=False),
    "httpx2, HTTP/2": _native(httpx2, http2=True),
}
