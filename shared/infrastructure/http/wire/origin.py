"""Where a connection leads."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class Origin(NamedTuple):
    """Scheme, host and port; connections of one origin can stand in for each other.

    Attributes:
        is_tls: The scheme is https.
        host: Name or address, without brackets.
        port: TCP port.
        authority: Host and port as in a URL, without the scheme's default port.
    """

    is_tls: bool
    host: str
    port: int
    authority: str


@lru_cache(maxsize=1024)
def origin_of(scheme: str, host: str, port: int | None) -> Origin:
    """Return the origin of a URL; `scheme` is http or https, `port` None is the scheme's own."""
    is_tls = scheme == "https"
    default = 443 if is_tls else 80
    name = f"[{host}]" if ":" in host else host
    authority = name if port in {None, default} else f"{name}:{port}"
    return Origin(is_tls, host, port or default, authority)
