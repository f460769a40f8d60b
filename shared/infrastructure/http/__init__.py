"""Floor three: HTTP clients and transports that host a stack of layers; this is httpx's flavour.

A request goes down this list, its answer up again::

    httpx.py, httpx2.py     what a user sees, a few classes for each library
    client.py               the client for one service: which layers, in which order
    report.py               what it says of itself
    transport.py            layers around one exchange; errors typed, bodies decoded and watched
    layers.py               layers that only HTTP needs: origin, idempotency key, quotas, checks
    credentials.py          the layer that puts a key on each attempt
    signing/                the layer that signs each attempt, and the verifier
    wires.py                which transport carries the bytes
    wire/                   our own HTTP/1.1 and HTTP/2
    uncancelled.py          what keeps cancellation out of httpx's own transport

What they use::

    library.py              all we need of httpx, or of httpx2
    semantics.py            how layers read requests and outcomes
    errors.py               what can go wrong
    config.py, tls.py, addresses.py     settings: pool and time limits, trust, where to connect
    decoding.py, json_body.py           answers within bounds
    bodies.py, amend.py     requests: what may be sent, and header fields for one attempt
    dial.py, tls_failure.py             from a name to a socket, and why TLS objected
    extensions.py, secrecy.py           keys of our extensions; URLs without secrets
"""

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
