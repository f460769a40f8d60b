"""What can go wrong with a pool of LLM hosts.

::

    ServiceError
    ├── CallRefusedError
    │   ├── NoHostAvailableError        no host may be called; says of each why
    │   ├── NotRunningError             the pool, or the service on it, is not running
    │   └── TokenLimitError             the token limits leave no room in time
    ├── UpstreamError
    │   ├── UpstreamStatusError         the last word of the hosts was an error status
    │   │   ├── BadRequestError         400: the request itself is wrong
    │   │   │   ├── ContextWindowError      it is longer than the model can read
    │   │   │   └── ContentFilterError      a policy forbids it
    │   │   ├── AuthenticationError     401: the key is none
    │   │   ├── PaymentRequiredError    402
    │   │   ├── PermissionDeniedError   403
    │   │   ├── ModelNotFoundError      404: no host knows the model
    │   │   ├── ConflictError           409
    │   │   ├── UnprocessableError      422
    │   │   ├── RateLimitedError        429
    │   │   │   └── InsufficientQuotaError  there is no money left: waiting does not help
    │   │   └── ServerError             5xx
    │   │       └── OverloadedError         503, 529
    │   └── InvalidResponseError        the status says 200, the body is not an answer
    │       ├── InBandError             an error inside an answer that had begun well
    │       └── InvalidStreamError      not an event stream, or an event that is no JSON
    │           └── StreamTruncatedError    ended early, with nothing that says it was complete
    ├── SilenceError                    a host says nothing any more (also TimeoutError)
    │   ├── FirstTokenTimeoutError      no content within `first_token`
    │   ├── StreamIdleTimeoutError      no content for `idle`
    │   └── SlowStreamError             fewer characters a second than `min_chars_per_second`
    ├── StreamInterruptedError          broke after a part was delivered; has the `partial` text
    └── UnexpectedAnswerError           whole, but not of the form that was expected
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.http import UpstreamError
from shared.infrastructure.resilience import (
    AttemptTimeoutError,
    CallRefusedError,
    ServiceError,
    Verdict,
)


class NoHostAvailableError(CallRefusedError):
    """No host may be called now.

    Attributes:
        reasons: Why not, by host.
        faults: What went wrong there, by host; None if nothing did: it is full, or disabled.
    """

    code = "no_host_available"

    def __init__(
        self,
        reasons: Mapping[str, str],
        *,
        faults: Mapping[str, Fault | None] | None = None,
        retry_after: float | None = None,
    ) -> None:
        listed = "; ".join(f"{host}: {reason}" for host, reason in reasons.items())
        super().__init__(
            f"no host is available: {listed or 'there is none'}", retry_after=retry_after
        )
        self.reasons = dict(reasons)
        self.faults = {host: faults.get(host) if faults else None for host in reasons}

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "reasons": self.reasons}


class NotRunningError(CallRefusedError):
    """The pool, or the service on top of it, has not been started or has been stopped."""

    code = "not_running"


class TokenLimitError(CallRefusedError):
    """The limits on tokens or requests a minute leave no room for the call in time."""

    code = "token_limit"


class UpstreamStatusError(UpstreamError):
    """The hosts' last word was an error status; what it says of the host is already counted.

    Attributes:
        status: HTTP status.
        body: The error as the host put it, at most 1,000 characters.
        model: Model that was asked for, if known.
        request_id: The host's own name of the request, if it gave one.
    """

    code = "upstream_status"
    verdict = Verdict.VOID

    def __init__(
        self,
        status: int,
        body: str,
        *,
        retry_after: float | None = None,
        model: str | None = None,
        request_id: str | None = None,
    ) -> None:
        self.status = status
        self.body = body[:1000]
        self.model = model
        self.request_id = request_id
        super().__init__(f"the last answer was {status}: {self.body}", retry_after=retry_after)

    def to_dict(self) -> dict[str, Any]:
        more = {"status": self.status, "model": self.model, "request_id": self.request_id}
        return {**super().to_dict(), **more}


class BadRequestError(UpstreamStatusError):
    """The request itself is wrong, and would be so on every host (400)."""

    code = "bad_request"


class ContextWindowError(BadRequestError):
    """The request is longer than the model can read."""

    code = "context_window_exceeded"


class ContentFilterError(BadRequestError):
    """A policy of the host forbids the request; it is not routed around unless you say so."""

    code = "content_filter"


class AuthenticationError(UpstreamStatusError):
    """The key that was sent is none (401)."""

    code = "authentication"


class PaymentRequiredError(UpstreamStatusError):
    """The account is empty (402)."""

    code = "payment_required"


class PermissionDeniedError(UpstreamStatusError):
    """The key may not do this (403)."""

    code = "permission_denied"


class ModelNotFoundError(UpstreamStatusError):
    """No host that was asked knows the model, or the path (404)."""

    code = "not_found"


class ConflictError(UpstreamStatusError):
    """The request conflicts with another (409)."""

    code = "conflict"


class UnprocessableError(UpstreamStatusError):
    """The request is well-formed and makes no sense to the host (422)."""

    code = "unprocessable"


class RateLimitedError(UpstreamStatusError):
    """The host asks for patience (429)."""

    code = "rate_limited"


class InsufficientQuotaError(RateLimitedError):
    """The account has no quota left: the same key will not do later either."""

    code = "insufficient_quota"


class ServerError(UpstreamStatusError):
    """The host failed (5xx)."""

    code = "server_error"


class OverloadedError(ServerError):
    """The host has too much to do (503, 529)."""

    code = "overloaded"


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


class SilenceError(AttemptTimeoutError):
    """A host says nothing any more; it is not asked again in this call."""

    code: ClassVar[str] = "silence"


class FirstTokenTimeoutError(SilenceError):
    """No content came within `first_token` seconds; roles, pings and blanks are no content."""

    code = "first_token_timeout"


class StreamIdleTimeoutError(SilenceError):
    """A stream that had begun brought no content for `idle` seconds."""

    code = "stream_idle_timeout"


class SlowStreamError(SilenceError):
    """A stream brought fewer characters a second than `min_chars_per_second`."""

    code = "slow_stream"


class StreamInterruptedError(ServiceError):
    """A streamed answer broke off after a part of it had been delivered.

    Args:
        errors: What interrupted it, and the answers before it that were begun anew; last one last.
        partial: The text delivered since the answer last began.
        usage: Tokens that all attempts cost, in the terms of the OpenAI API, with `estimated`
            beside them if a host did not say; None if that is not known.

    Attributes:
        partial: As above; what was delivered is this and nothing else.
        usage: As above.
    """

    code = "stream_interrupted"

    def __init__(
        self, errors: Sequence[ServiceError], partial: str, usage: Mapping[str, Any] | None = None
    ) -> None:
        last = errors[-1]
        super().__init__(f"the answer of {last.host} broke off: {last}", host=last.host)
        self.partial = partial
        self.usage = usage
        self.attempts = last.attempts
        self.earlier = tuple(errors[:-1])

    def to_dict(self) -> dict[str, Any]:
        more = {"partial_characters": len(self.partial), "usage": self.usage}
        return {**super().to_dict(), **more}


class UnexpectedAnswerError(ServiceError):
    """An answer is whole, but not of the form that was expected of it: no fault of the host.

    Attributes:
        text: The answer.
    """

    code = "unexpected_answer"

    def __init__(self, problem: str, text: str, *, host: str | None = None) -> None:
        super().__init__(f"the answer is not what was expected: {problem}", host=host)
        self.text = text
