"""What can go wrong on the wire; one class per cause, whatever HTTP library carries the bytes.

::

    ServiceError
    └── UpstreamError                   the exchange failed; knows its phase and what was sent
        ├── ConnectFailedError          refused, unreachable, DNS, TLS           nothing was sent
        ├── ConnectTimeoutError         no connection within `connect`           nothing was sent
        ├── PoolTimeoutError            our own pool stayed full for `pool`      nothing was sent
        ├── ProxyFailedError            the proxy did not pass us on             nothing was sent
        ├── WriteFailedError            the connection broke while sending
        ├── WriteTimeoutError           the peer stopped taking bytes
        ├── ReadFailedError             the connection broke while we were reading
        ├── ReadTimeoutError            silence for longer than `read`
        ├── RemoteProtocolViolationError    what came back is not HTTP, or was cut short
        └── LocalProtocolViolationError     what we tried to send is not HTTP: the caller's mistake

What a client raises is also the class of its HTTP library, so that `except httpx.ConnectError`
goes on working.
"""

from __future__ import annotations

from typing import Any, ClassVar

from shared.infrastructure.resilience import ServiceError, Verdict


class UpstreamError(ServiceError):
    """The exchange with the service failed.

    Attributes:
        phase: Where it failed: "connect", "pool", "write" or "read".
        unsent: True if the service certainly never saw the request, so that repeating it is safe.
        verdict: What it says about the service.
    """

    code = "upstream_error"
    phase: ClassVar[str] = "read"
    unsent: ClassVar[bool] = False
    verdict: ClassVar[Verdict] = Verdict.FAILED

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "phase": self.phase, "unsent": self.unsent}


class ConnectFailedError(UpstreamError):
    """No connection: refused, unreachable, no such name, or no valid certificate."""

    code = "connect_failed"
    phase = "connect"
    unsent = True


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


class RemoteProtocolViolationError(UpstreamError):
    """The answer is not valid HTTP, or ended before it was complete."""

    code = "remote_protocol_violation"


class LocalProtocolViolationError(UpstreamError):
    """The request is not valid HTTP: a mistake of the caller, not of the service."""

    code = "local_protocol_violation"
    phase = "write"
    unsent = True
    verdict = Verdict.VOID
