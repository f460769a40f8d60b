"""What can go wrong with a pool of LLM hosts.

::

    ServiceError
    ├── CallRefusedError
    │   ├── NoHostAvailableError        every host is disabled, open or full; says which is which
    │   └── NotRunningError             the pool, or the service on it, is not running
    ├── UpstreamError
    │   ├── UpstreamStatusError         the last word of the hosts was an error status
    │   └── InvalidResponseError        the status says 200, the body is not an answer
    │       ├── InBandError             an error inside an answer that had begun well
    │       └── InvalidStreamError      not an event stream, or an event that is no JSON
    │           └── StreamTruncatedError    ended early, with nothing that says it was complete
    └── StreamInterruptedError          broke after a part was delivered; has the `partial` text
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared.infrastructure.http import UpstreamError
from shared.infrastructure.resilience import CallRefusedError, ServiceError, Verdict


class NoHostAvailableError(CallRefusedError):
    """No host may be called now.

    Attributes:
        reasons: Why not, by host.
    """

    code = "no_host_available"

    def __init__(self, reasons: Mapping[str, str], *, retry_after: float | None = None) -> None:
        listed = "; ".join(f"{host}: {reason}" for host, reason in reasons.items())
        super().__init__(f"no host is available: {listed}", retry_after=retry_after)
        self.reasons = dict(reasons)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "reasons": self.reasons}


class NotRunningError(CallRefusedError):
    """The pool, or the service on top of it, has not been started or has been stopped."""

    code = "not_running"


class UpstreamStatusError(UpstreamError):
    """The hosts' last word was an error status; what it says of the host is already counted.

    Attributes:
        status: HTTP status.
        body: The error as the host put it, at most 1,000 characters.
    """

    code = "upstream_status"
    verdict = Verdict.VOID

    def __init__(self, status: int, body: str, *, retry_after: float | None = None) -> None:
        self.status = status
        self.body = body[:1000]
        super().__init__(f"the last answer was {status}: {self.body}", retry_after=retry_after)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "status": self.status}


class InvalidResponseError(UpstreamError):
    """The status says 200, but the body is no answer: empty, cut short, HTML, without content."""

    code = "invalid_response"


class InBandError(InvalidResponseError):
    """The host reported an error inside an answer that had begun well."""

    code = "in_band_error"


class InvalidStreamError(InvalidResponseError):
    """A stream was asked for, and what came is none, or holds an event that is no JSON."""

    code = "invalid_stream"


class StreamTruncatedError(InvalidStreamError):
    """The stream ended with neither a finish reason nor `[DONE]`: the host died, or gave up."""

    code = "stream_truncated"


class StreamInterruptedError(ServiceError):
    """A streamed answer broke off after a part of it had been delivered.

    Args:
        errors: What interrupted it, and the answers before it that were begun anew; last one last.
        partial: The text delivered since the answer last began.

    Attributes:
        partial: As above; what was delivered is this and nothing else.
    """

    code = "stream_interrupted"

    def __init__(self, errors: Sequence[ServiceError], partial: str) -> None:
        last = errors[-1]
        super().__init__(f"the answer of {last.host} broke off: {last}", host=last.host)
        self.partial = partial
        self.attempts = last.attempts
        self.earlier = tuple(errors[:-1])

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "partial_characters": len(self.partial)}
