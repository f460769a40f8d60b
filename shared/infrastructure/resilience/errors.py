"""The one error tree of the SDK; other rooms hang their own branches under it.

::

    ServiceError                        everything this SDK raises on purpose
    ├── ConfigurationError              an argument, a setting or a model is wrong (also ValueError)
    │   └── MissingExtraError           an optional dependency is not installed (also ImportError)
    ├── CallRefusedError                we said no; nothing was sent; never retried, never counted
    │   ├── CircuitOpenError            the breaker is open, or its probes are all taken
    │   ├── RateLimitExceededError      the permit would come later than the caller can wait
    │   └── BulkheadFullError           too many calls in flight and waiting
    ├── DeadlineExceededError           the caller's whole budget is spent (also TimeoutError)
    └── AttemptTimeoutError             one attempt took too long (also TimeoutError)

`shared.infrastructure.http.errors` adds `UpstreamError`, `…balancing.errors` adds the errors of a
pool of hosts, `…local_embeddings.errors` those of a local model.
"""

from __future__ import annotations

from typing import Any, ClassVar

from shared.infrastructure.resilience.trace import Trace, current_trace


class ServiceError(Exception):
    """Base of every error this SDK raises on purpose.

    Attributes:
        code: Stable, machine-readable name of the kind of failure.
        service: Name of the service that was called, if known.
        host: Host that was tried last, if the call has hosts.
        attempts: Attempts made before giving up; 0 if nothing was sent.
        earlier: Errors of the attempts before this one, oldest first.
        retry_after: Seconds after which another try makes sense, if known.
        trace: What was decided on the way of the call, if it was traced or retried.
    """

    code: ClassVar[str] = "service_error"

    def __init__(
        self,
        message: str,
        *,
        service: str | None = None,
        host: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        Exception.__init__(self, message)
        self.service = service
        self.host = host
        self.retry_after = retry_after
        self.attempts = 0
        self.earlier: tuple[BaseException, ...] = ()
        self.trace: Trace | None = current_trace()

    def to_dict(self) -> dict[str, Any]:
        """Return the error as plain JSON types, for logs and replies."""
        return {
            "code": self.code,
            "message": str(self),
            "service": self.service,
            "host": self.host,
            "attempts": self.attempts,
            "retry_after": self.retry_after,
        }


class ConfigurationError(ServiceError, ValueError):
    """An argument, a setting or a model is wrong; the message says what to change."""

    code = "configuration_error"


class MissingExtraError(ConfigurationError, ImportError):
    """An optional dependency is not installed."""

    code = "missing_extra"

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs an optional dependency: pip install 'morgan-sdk[{extra}]'"
        )
        self.extra = extra


class CallRefusedError(ServiceError):
    """We refused the call: nothing was sent, so it says nothing about the service.

    It does not subclass any transport error, so that no SDK above retries it.
    """

    code = "call_refused"


class CircuitOpenError(CallRefusedError):
    """The circuit breaker is open, or half-open with every probe taken."""

    code = "circuit_open"


class RateLimitExceededError(CallRefusedError):
    """No permit of the rate limiter comes free within the time the caller can wait."""

    code = "rate_limit_exceeded"


class BulkheadFullError(CallRefusedError):
    """Too many calls are in flight, and no more may wait."""

    code = "bulkhead_full"


class DeadlineExceededError(ServiceError, TimeoutError):
    """The time the caller gave to the whole call is spent."""

    code = "deadline_exceeded"


class AttemptTimeoutError(ServiceError, TimeoutError):
    """One attempt took longer than it may."""

    code = "attempt_timeout"
