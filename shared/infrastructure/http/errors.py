"""What can go wrong on the wire; one class per cause, whatever HTTP library carries the bytes.

::

    ServiceError
    └── UpstreamError                   the exchange failed; knows its phase and what was sent
        ├── ConnectFailedError          refused, unreachable, DNS                nothing was sent
        │   └── TLSFailedError          no trust: certificate, name, version     nothing was sent
        ├── ConnectTimeoutError         no connection within `connect`           nothing was sent
        ├── PoolTimeoutError            our own pool stayed full for `pool`      nothing was sent
        ├── ProxyFailedError            the proxy did not pass us on             nothing was sent
        ├── WriteFailedError            the connection broke while sending
        ├── WriteTimeoutError           the peer stopped taking bytes
        ├── ReadFailedError             the connection broke while we were reading
        ├── ReadTimeoutError            silence for longer than `read`
        ├── UnprocessedError            the service says it has not touched it   safe to repeat
        ├── ResponseTooLargeError       more bytes than `ResponseLimits` allow
        ├── RemoteProtocolViolationError    what came back is not HTTP, or was cut short
        │   └── UndecodableBodyError    its body is not what its header fields say
        └── LocalProtocolViolationError     what we tried to send is not HTTP: the caller's mistake

    ConfigurationError
    ├── CrossOriginError                the URL is of another origin than the client's: not sent
    ├── CredentialError                 there is no key to send (`credentials`)
    └── SigningError                    the request cannot be signed (`signing`)
    CallRefusedError
    └── AddressRefusedError             a guard does not let us connect there (`addresses`)

What a client raises is also the class of its HTTP library, so that `except httpx.ConnectError`
goes on working.
"""

from __future__ import annotations

from typing import Any, ClassVar

from shared.infrastructure.resilience import ConfigurationError, ServiceError, Verdict


class UpstreamError(ServiceError):
    """The exchange with the service failed.

    Attributes:
        phase: Where it failed: "connect", "pool", "write" or "read".
        unsent: True if the service certainly never saw the request, so that repeating it is safe.
        is_final: True if the same host would only give the same again.
        verdict: What it says about the service.
    """

    code = "upstream_error"
    phase: ClassVar[str] = "read"
    unsent: ClassVar[bool] = False
    is_final: ClassVar[bool] = False
    verdict: ClassVar[Verdict] = Verdict.FAILED

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "phase": self.phase, "unsent": self.unsent}


class ConnectFailedError(UpstreamError):
    """No connection: refused, unreachable, or no such name."""

    code = "connect_failed"
    phase = "connect"
    unsent = True


class TLSFailedError(ConnectFailedError):
    """The two sides do not trust each other, or share no version of TLS.

    It does not heal by itself: the call is not repeated on the same host.
    """

    code = "tls_failed"
    is_final = True


class ConnectTimeoutError(UpstreamError):
    """No connection within the connect timeout."""

    code = "connect_timeout"
    phase = "connect"
    unsent = True


class PoolTimeoutError(UpstreamError):
    """Every connection of our own pool stayed busy: no fault of the service."""

    code = "pool_timeout"
    phase = "pool"
    unsent = True
    verdict = Verdict.VOID


class ProxyFailedError(UpstreamError):
    """The proxy did not pass the request on."""

    code = "proxy_failed"
    phase = "connect"
    unsent = True


class WriteFailedError(UpstreamError):
    """The connection broke while the request was being sent."""

    code = "write_failed"
    phase = "write"


class WriteTimeoutError(UpstreamError):
    """The service stopped taking bytes of the request."""

    code = "write_timeout"
    phase = "write"


class ReadFailedError(UpstreamError):
    """The connection broke while the answer was awaited or read."""

    code = "read_failed"


class ReadTimeoutError(UpstreamError):
    """The service stayed silent for longer than the read timeout."""

    code = "read_timeout"


class UnprocessedError(UpstreamError):
    """The service has said that it did not process the request: a refused stream, a GOAWAY.

    That is no failure but a wish to be left alone for now; another connection may do at once.
    """

    code = "unprocessed"
    unsent = True
    verdict = Verdict.BUSY


class ResponseTooLargeError(UpstreamError):
    """The answer has more bytes than `ResponseLimits` allow; the rest was not read."""

    code = "response_too_large"
    is_final = True


class RemoteProtocolViolationError(UpstreamError):
    """The answer is not valid HTTP, or ended before it was complete."""

    code = "remote_protocol_violation"


class UndecodableBodyError(RemoteProtocolViolationError):
    """The body is not what the header fields say: a coding, or a document, that does not parse."""

    code = "undecodable_body"


class LocalProtocolViolationError(UpstreamError):
    """The request is not valid HTTP: a mistake of the caller, not of the service."""

    code = "local_protocol_violation"
    phase = "write"
    unsent = True
    verdict = Verdict.VOID


class CrossOriginError(ConfigurationError):
    """A request, or a redirect, to another origin than the client is for: it was not sent."""

    code = "cross_origin"
