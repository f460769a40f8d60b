"""Which transport carries the bytes: the SDK's own wire, or the native one of the HTTP library."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from shared.infrastructure.http.config import ConnectionPoolConfig, TimeoutConfig
from shared.infrastructure.http.library import HTTPLibrary
from shared.infrastructure.resilience import ConfigurationError


def chosen_wire(
    given: Any,
    own: Callable[..., Any],
    pool: ConnectionPoolConfig,
    *,
    library: HTTPLibrary,
    http2: bool,
    verify: ssl.SSLContext | bool,
    check_address: Callable[[str], None] | None,
    max_header_size: int,
    proxy: str | None,
) -> Any:
    """Return the transport that was given, the native one for a proxy, or else our own wire.

    Raises:
        ConfigurationError: It could not do what is asked of it.
    """
    if verify is False:
        raise ConfigurationError(
            "verify=False would accept any server; TLSConfig(ca_file=...) trusts your own authority"
        )
    if check_address is not None and (given is not None or proxy is not None):
        raise ConfigurationError(
            "check_address is for connections of our own: a proxy, or a transport of yours, looks "
            "up addresses itself and has to refuse them there"
        )
    if given is not None:
        if proxy is not None:
            raise ConfigurationError("a transport of yours brings its own proxy: leave proxy out")
        return given
    if proxy is not None:
        return native_transport(pool, library=library, http2=http2, verify=verify, proxy=proxy)
    tls = verify if isinstance(verify, ssl.SSLContext) else None
    return own(
        pool, tls=tls, check_address=check_address, max_header_size=max_header_size, http2=http2
    )


def native_transport(
    pool: ConnectionPoolConfig,
    *,
    library: HTTPLibrary,
    http2: bool,
    verify: ssl.SSLContext | bool,
    proxy: str,
) -> Any:
    """Return the library's own transport with our bounds: it can go through a proxy."""
    limits = library.limits(
        max_connections=pool.max_connections,
        max_keepalive_connections=pool.max_keepalive_connections,
        keepalive_expiry=pool.keepalive_expiry,
    )
    return library.native(verify=verify, http2=http2, limits=limits, proxy=proxy, trust_env=False)


def timeouts_of(config: TimeoutConfig) -> dict[str, float | None]:
    """Return the four limits that a transport itself enforces."""
    return {
        "connect": config.connect,
        "read": config.read,
        "write": config.write,
        "pool": config.pool,
    }
