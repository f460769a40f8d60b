"""Floor three: HTTP clients and transports that host a stack of layers; this is httpx's flavour."""

from shared.infrastructure.http.addresses import (
    AddressRefusedError,
    allow_networks,
    deny_networks,
    public_addresses_only,
)
from shared.infrastructure.http.config import ConnectionPoolConfig, TimeoutConfig
from shared.infrastructure.http.credentials import (
    ApiKeyLayer,
    ApiKeyRenewed,
    CredentialError,
    key_file,
    redacted,
)
from shared.infrastructure.http.decoding import ResponseLimits
from shared.infrastructure.http.errors import (
    ConnectFailedError,
    ConnectTimeoutError,
    CrossOriginError,
    LocalProtocolViolationError,
    PoolTimeoutError,
    ProxyFailedError,
    ReadFailedError,
    ReadTimeoutError,
    RemoteProtocolViolationError,
    ResponseTooLargeError,
    TLSFailedError,
    UndecodableBodyError,
    UnprocessedError,
    UpstreamError,
    WriteFailedError,
    WriteTimeoutError,
)
from shared.infrastructure.http.httpx import (
    EnhancedHTTPClient,
    ResilientTransport,
    WireTransport,
)
from shared.infrastructure.http.json_body import json_answer, parse_json
from shared.infrastructure.http.layers import IdempotencyKeyLayer
from shared.infrastructure.http.semantics import HTTP, HTTPSemantics
from shared.infrastructure.http.signing import (
    HMACSigner,
    SignatureVerifier,
    Signer,
    SigningError,
    SigningLayer,
)
from shared.infrastructure.http.tls import TLSConfig
from shared.infrastructure.http.wire.errors import StaleConnectionError

__all__ = [
    # config.py
    "ConnectionPoolConfig",
    "TimeoutConfig",
    # decoding.py
    "ResponseLimits",
    # errors.py
    "ConnectFailedError",
    "ConnectTimeoutError",
    "CrossOriginError",
    "LocalProtocolViolationError",
    "PoolTimeoutError",
    "ProxyFailedError",
    "ReadFailedError",
    "ReadTimeoutError",
    "RemoteProtocolViolationError",
    "ResponseTooLargeError",
    "TLSFailedError",
    "UndecodableBodyError",
    "UnprocessedError",
    "UpstreamError",
    "WriteFailedError",
    "WriteTimeoutError",
    # wire/errors.py
    "StaleConnectionError",
    # json_body.py
    "json_answer",
    "parse_json",
    # semantics.py
    "HTTP",
    "HTTPSemantics",
    # layers.py
    "IdempotencyKeyLayer",
    # credentials.py
    "ApiKeyLayer",
    "ApiKeyRenewed",
    "CredentialError",
    "key_file",
    "redacted",
    # signing
    "HMACSigner",
    "SignatureVerifier",
    "Signer",
    "SigningError",
    "SigningLayer",
    # tls.py
    "TLSConfig",
    # addresses.py
    "AddressRefusedError",
    "allow_networks",
    "deny_networks",
    "public_addresses_only",
    # httpx.py, and for the other library httpx2.py
    "EnhancedHTTPClient",
    "ResilientTransport",
    "WireTransport",
]
