"""What an error carries, and the names that handlers and dashboards rely on."""

import pytest

from shared.infrastructure.resilience import (
    AttemptTimeoutError,
    BulkheadFullError,
    CallRefusedError,
    CircuitOpenError,
    ConfigurationError,
    DeadlineExceededError,
    MissingExtraError,
    RateLimitExceededError,
    ServiceError,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ServiceError, "service_error"),
        (ConfigurationError, "configuration_error"),
        (MissingExtraError, "missing_extra"),
        (CallRefusedError, "call_refused"),
        (CircuitOpenError, "circuit_open"),
        (RateLimitExceededError, "rate_limit_exceeded"),
        (BulkheadFullError, "bulkhead_full"),
        (DeadlineExceededError, "deadline_exceeded"),
        (AttemptTimeoutError, "attempt_timeout"),
    ],
)
def test_the_code_of_an_error_is_stable(kind: type[ServiceError], code: str) -> None:
    assert kind.code == code


def test_an_error_says_what_it_knows_as_plain_data() -> None:
    error = CircuitOpenError("open", service="llm", host="a", retry_after=3.0)
    assert (error.attempts, error.earlier) == (0, ())
    error.attempts = 2
    assert error.to_dict() == {
        "code": "circuit_open",
        "message": "open",
        "service": "llm",
        "host": "a",
        "attempts": 2,
        "retry_after": 3.0,
    }


def test_a_missing_extra_says_how_to_install_it() -> None:
    error = MissingExtraError("Redis limits", "redis")
    assert error.extra == "redis"
    assert "Redis limits needs" in str(error)
    assert "pip install 'morgan-sdk[redis]'" in str(error)
    assert isinstance(error, ImportError)
