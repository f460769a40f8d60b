"""Floor three: HTTP clients and transports that host a stack of layers."""

from shared.infrastructure.http.client import EnhancedHTTPClient
from shared.infrastructure.http.config import ConnectionPoolConfig, TimeoutConfig
from shared.infrastructure.http.errors import (
    ConnectFailedError,
    ConnectTimeoutError,
    LocalProtocolViolationError,
    PoolTimeoutError,
    ProxyFailedError,
    ReadFailedError,
    ReadTimeoutError,
    RemoteProtocolViolationError,
    UpstreamError,
    WriteFailedError,
    WriteTimeoutError,
)
from shared.infrastructure.http.semantics import HTTP, HTTPSemantics
from shared.infrastructure.http.transport import ResilientTransport
from shared.infrastructure.http.wire.errors import StaleConnectionError
from shared.infrastructure.http.wire.transport import WireTransport

__all__ = [
    # config.py
    "ConnectionPoolConfig",
    "TimeoutConfig",
    # errors.py
    "ConnectFailedError",
    "ConnectTimeoutError",
    "LocalProtocolViolationError",
    "PoolTimeoutError",
    "ProxyFailedError",
    "ReadFailedError",
    "ReadTimeoutError",
    "RemoteProtocolViolationError",
    "UpstreamError",
    "WriteFailedError",
    "WriteTimeoutError",
    # semantics.py
    "HTTP",
    "HTTPSemantics",
    # transport.py
    "ResilientTransport",
    # wire
    "StaleConnectionError",
    "WireTransport",
    # client.py
    "EnhancedHTTPClient",
]
