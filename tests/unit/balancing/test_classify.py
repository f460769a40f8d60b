"""The error table: what an outcome is, by what it calls itself and by its status."""

import asyncio
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing import errors
from shared.infrastructure.balancing.call import ATTEMPT, CALL, FAULT, Attempt, Call, RequestFacts
from shared.infrastructure.balancing.classify import (
    EARLIER,
    fault_of,
    fault_of_error,
    status_error,
    status_in,
)
from shared.infrastructure.balancing.faults import RULES, Fault
from shared.infrastructure.balancing.semantics import POOL
from shared.infrastructure.http import (
    ConnectFailedError,
    ConnectTimeoutError,
    CredentialError,
    LocalProtocolViolationError,
    PoolTimeoutError,
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
from shared.infrastructure.http.extensions import TRACE
from shared.infrastructure.resilience import (
    AttemptTimeoutError,
    BulkheadFullError,
    CircuitOpenError,
    ConfigurationError,
    DeadlineExceededError,
    RateLimitExceededError,
    ServiceError,
    Trace,
    Verdict,
)
from shared.infrastructure.resilience.hedge import OVERTAKEN

STATUSES = {
    400: Fault.REJECTED,
    401: Fault.MISCONFIGURED,
    402: Fault.MISCONFIGURED,
    403: Fault.MISCONFIGURED,
    404: Fault.NO_MODEL,
    405: Fault.REJECTED,
    408: Fault.BROKEN,
    409: Fault.REJECTED,
    413: Fault.REJECTED,
    418: Fault.REJECTED,
    422: Fault.REJECTED,
    429: Fault.THROTTLED,
    500: Fault.BROKEN,
    501: Fault.REJECTED,
    502: Fault.BROKEN,
    503: Fault.OVERLOADED,
    504: Fault.BROKEN,
    505: Fault.REJECTED,
    520: Fault.BROKEN,
    529: Fault.OVERLOADED,
}

TOO_LONG = Fault.CONTEXT_WINDOW
FORBIDDEN = Fault.CONTENT_FILTER
KEY = Fault.MISCONFIGURED

# Status, error object, fault; by who sends it.
ERRORS: dict[str, list[tuple[int, dict[str, Any], Fault]]] = {
    "openai": [
        (400, {"code": "context_length_exceeded", "type": "invalid_request_error"}, TOO_LONG),
        (400, {"code": "content_policy_violation", "type": "invalid_request_error"}, FORBIDDEN),
        (
            400,
            {"code": "invalid_prompt", "message": "flagged as potentially violating our policy"},
            FORBIDDEN,
        ),
        (400, {"code": "unsupported_value", "type": "invalid_request_error"}, Fault.REJECTED),
        (401, {"code": "invalid_api_key", "type": "invalid_request_error"}, KEY),
        (403, {"code": "unsupported_country_region_territory"}, KEY),
        (404, {"code": "model_not_found", "type": "invalid_request_error"}, Fault.NO_MODEL),
        (429, {"code": "insufficient_quota", "type": "insufficient_quota"}, KEY),
        (429, {"code": "rate_limit_exceeded", "type": "tokens"}, Fault.THROTTLED),
        (413, {"code": "rate_limit_exceeded", "type": "tokens"}, Fault.THROTTLED),
        (429, {"code": None, "type": "requests"}, Fault.THROTTLED),
        (500, {"code": None, "type": "server_error"}, Fault.BROKEN),
        (503, {"code": "slow_down", "type": "server_error"}, Fault.OVERLOADED),
        (200, {"code": None, "type": "server_error"}, Fault.BROKEN),
        (200, {"code": "rate_limit_exceeded"}, Fault.THROTTLED),
        (200, {"type": "invalid_request_error"}, Fault.REJECTED),
    ],
    "azure": [
        (400, {"code": "content_filter", "status": 400}, FORBIDDEN),
        (400, {"innererror": {"code": "ResponsibleAIPolicyViolation"}}, FORBIDDEN),
        (400, {"message": "triggering Azure OpenAI's content management policy"}, FORBIDDEN),
        (404, {"code": "DeploymentNotFound"}, Fault.NO_MODEL),
        (429, {"code": "429"}, Fault.THROTTLED),
        (200, {"code": "429"}, Fault.THROTTLED),
        (429, {"code": "RateLimitReached"}, Fault.THROTTLED),
    ],
    "anthropic": [
        (400, {"type": "invalid_request_error", "message": "max_tokens: required"}, Fault.REJECTED),
        (400, {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8"}, TOO_LONG),
        (
            400,
            {
                "type": "invalid_request_error",
                "message": "input length and `max_tokens` exceed context limit: 9 + 8 > 16",
            },
            TOO_LONG,
        ),
        (
            400,
            {"type": "invalid_request_error", "message": "Your credit balance is too low"},
            KEY,
        ),
        (
            400,
            {
                "type": "invalid_request_error",
                "message": "Output blocked by content filtering policy",
            },
            FORBIDDEN,
        ),
        (401, {"type": "authentication_error"}, KEY),
        (402, {"type": "billing_error"}, KEY),
        (403, {"type": "permission_error"}, KEY),
        (404, {"type": "not_found_error"}, Fault.NO_MODEL),
        (413, {"type": "request_too_large"}, Fault.REJECTED),
        (429, {"type": "rate_limit_error"}, Fault.THROTTLED),
        (500, {"type": "api_error"}, Fault.BROKEN),
        (504, {"type": "timeout_error"}, Fault.BROKEN),
        (529, {"type": "overloaded_error"}, Fault.OVERLOADED),
        (200, {"type": "overloaded_error"}, Fault.OVERLOADED),
        (200, {"type": "api_error"}, Fault.BROKEN),
    ],
    "vllm": [
        (
            400,
            {
                "object": "error",
                "code": 400,
                "type": "BadRequestError",
                "message": "This model's maximum context length is 4096 tokens. However, you",
            },
            TOO_LONG,
        ),
        (400, {"code": 400, "message": "longer than the maximum model length of 9"}, TOO_LONG),
        (404, {"object": "error", "code": 404, "type": "NotFoundError"}, Fault.NO_MODEL),
        (200, {"object": "error", "code": 400, "type": "BadRequestError"}, Fault.REJECTED),
        (200, {"object": "error", "code": 503, "message": "no room"}, Fault.OVERLOADED),
        (200, {"object": "error", "message": "EngineDeadError"}, Fault.BROKEN),
    ],
    "llama-server": [
        (400, {"code": 400, "type": "exceed_context_size_error", "n_ctx": 256}, TOO_LONG),
        (500, {"code": 500, "type": "exceed_context_size_error"}, TOO_LONG),
        (500, {"code": 500, "message": "Context size has been exceeded."}, TOO_LONG),
        (503, {"code": 503, "type": "unavailable_error", "message": "Loading"}, Fault.OVERLOADED),
        (501, {"code": 501, "type": "not_supported_error"}, Fault.REJECTED),
        (401, {"code": 401, "type": "authentication_error"}, KEY),
    ],
    "openrouter": [
        (200, {"code": 502, "message": "Provider returned error"}, Fault.BROKEN),
        (200, {"code": 402, "message": "Insufficient credits"}, KEY),
        (200, {"code": 429, "message": "slow"}, Fault.THROTTLED),
        (403, {"code": 403, "metadata": {"reasons": ["x"], "flagged_input": "y"}}, FORBIDDEN),
        (403, {"code": 403, "message": "no"}, KEY),
        (503, {"code": 503, "metadata": {"error_type": "provider_overloaded"}}, Fault.OVERLOADED),
        (400, {"code": 400, "metadata": {"error_type": "context_length_exceeded"}}, TOO_LONG),
    ],
    "others": [
        (429, {"code": 429, "status": "RESOURCE_EXHAUSTED"}, Fault.THROTTLED),
        (
            400,
            {"status": "INVALID_ARGUMENT", "message": "exceeds the maximum number of tokens"},
            TOO_LONG,
        ),
        (422, {"type": "validation", "message": "`inputs` must have less than 9 tokens"}, TOO_LONG),
        (400, {"message": "longer than the model's context length (9 tokens)"}, TOO_LONG),
        (429, {"message": "exceeds the context of your plan"}, Fault.THROTTLED),
        (200, {"message": "finish_reason is error"}, Fault.BROKEN),
        (500, {"code": ["odd"], "metadata": "odd", "innererror": 3, "message": None}, Fault.BROKEN),
    ],
}

EXCEPTIONS: list[tuple[BaseException, Fault]] = [
    (ConnectFailedError("x"), Fault.BROKEN),
    (ConnectTimeoutError("x"), Fault.BROKEN),
    (TLSFailedError("x"), Fault.BROKEN),
    (ReadFailedError("x"), Fault.BROKEN),
    (WriteFailedError("x"), Fault.BROKEN),
    (RemoteProtocolViolationError("x"), Fault.BROKEN),
    (UndecodableBodyError("x"), Fault.BROKEN),
    (ResponseTooLargeError("x"), Fault.BROKEN),
    (errors.InvalidResponseError("x"), Fault.BROKEN),
    (errors.InvalidStreamError("x"), Fault.BROKEN),
    (errors.StreamTruncatedError("x"), Fault.BROKEN),
    (errors.InBandError("x"), Fault.BROKEN),
    (ReadTimeoutError("x"), Fault.SILENT),
    (WriteTimeoutError("x"), Fault.SILENT),
    (AttemptTimeoutError("x"), Fault.SILENT),
    (errors.FirstTokenTimeoutError("x"), Fault.SILENT),
    (errors.StreamIdleTimeoutError("x"), Fault.SILENT),
    (errors.SlowStreamError("x"), Fault.SILENT),
    (asyncio.CancelledError(OVERTAKEN), Fault.OURS),
    (UnprocessedError("x"), Fault.THROTTLED),
    (CredentialError("x"), Fault.MISCONFIGURED),
    (PoolTimeoutError("x"), Fault.OURS),
    (LocalProtocolViolationError("x"), Fault.OURS),
    (errors.NoHostAvailableError({"a": "x"}), Fault.OURS),
    (errors.TokenLimitError("x"), Fault.OURS),
    (CircuitOpenError("x"), Fault.OURS),
    (RateLimitExceededError("x"), Fault.OURS),
    (BulkheadFullError("x"), Fault.OURS),
    (DeadlineExceededError("x"), Fault.OURS),
    (ConfigurationError("x"), Fault.OURS),
    (ServiceError("x"), Fault.OURS),
    (asyncio.CancelledError(), Fault.OURS),
    (asyncio.CancelledError("the caller left"), Fault.OURS),
    (KeyError("x"), Fault.OURS),
    (errors.ServerError(500, ""), Fault.BROKEN),
    (errors.OverloadedError(529, ""), Fault.OVERLOADED),
    (errors.ContextWindowError(400, ""), Fault.CONTEXT_WINDOW),
    (errors.ContentFilterError(400, ""), Fault.CONTENT_FILTER),
    (errors.InsufficientQuotaError(429, ""), Fault.MISCONFIGURED),
    (errors.RateLimitedError(429, ""), Fault.THROTTLED),
    (errors.BadRequestError(400, ""), Fault.REJECTED),
]


@pytest.mark.parametrize(("status", "fault"), STATUSES.items())
def test_a_status_is_a_fault(status: int, fault: Fault) -> None:
    assert fault_of_error(status, None) is fault
    assert fault_of(httpx.Response(status)) is fault


@pytest.mark.parametrize(
    ("status", "error", "fault"),
    [
        pytest.param(*row, id=f"{sender}-{number}")
        for sender, rows in ERRORS.items()
        for number, row in enumerate(rows)
    ],
)
def test_what_an_error_calls_itself_comes_first(
    status: int, error: dict[str, Any], fault: Fault
) -> None:
    assert fault_of_error(status, error) is fault


STATUSES_IN: list[tuple[Any, int | None]] = [
    ({"code": 503}, 503),
    ({"code": "x", "status": "429"}, 429),
    ({"status_code": 404}, 404),
    ({"code": 200}, None),
    ({"code": "4290"}, None),
    ({"code": "9" * 5000}, None),
    ({"code": [503]}, None),
    ({}, None),
]


@pytest.mark.parametrize(("error", "status"), STATUSES_IN)
def test_the_status_that_an_error_names(error: Any, status: int | None) -> None:
    assert status_in(error) == status


@pytest.mark.parametrize(("error", "fault"), EXCEPTIONS, ids=lambda v: type(v).__name__)
def test_an_exception_is_a_fault(error: BaseException, fault: Fault) -> None:
    assert fault_of(error) is fault
    assert POOL.judge(error) is RULES[fault].verdict


def test_an_answer_has_no_fault() -> None:
    assert fault_of(httpx.Response(200)) is None
    assert POOL.judge(httpx.Response(200)) is Verdict.OK


def test_what_was_found_in_the_body_counts_and_not_the_status() -> None:
    response = httpx.Response(200, extensions={FAULT: Fault.THROTTLED})
    assert fault_of(response) is Fault.THROTTLED
    assert POOL.judge(response) is Verdict.BUSY


def test_an_error_inside_a_stream_may_bring_its_fault() -> None:
    error = errors.InBandError("overloaded")
    setattr(error, FAULT, Fault.OVERLOADED)
    assert fault_of(error) is Fault.OVERLOADED


def test_a_conflict_is_final_unless_the_host_says_otherwise() -> None:
    assert fault_of(httpx.Response(409)) is Fault.REJECTED
    assert fault_of(httpx.Response(409, headers={"x-should-retry": "true"})) is Fault.BROKEN
    assert fault_of(httpx.Response(400, headers={"x-should-retry": "true"})) is Fault.BROKEN


KINDS: list[tuple[int, Fault | None, type[errors.UpstreamStatusError]]] = [
    (400, None, errors.BadRequestError),
    (400, Fault.CONTEXT_WINDOW, errors.ContextWindowError),
    (500, Fault.CONTEXT_WINDOW, errors.ContextWindowError),
    (400, Fault.CONTENT_FILTER, errors.ContentFilterError),
    (401, None, errors.AuthenticationError),
    (402, None, errors.PaymentRequiredError),
    (403, None, errors.PermissionDeniedError),
    (404, None, errors.ModelNotFoundError),
    (409, None, errors.ConflictError),
    (418, None, errors.UpstreamStatusError),
    (422, None, errors.UnprocessableError),
    (429, None, errors.RateLimitedError),
    (429, Fault.MISCONFIGURED, errors.InsufficientQuotaError),
    (413, Fault.THROTTLED, errors.RateLimitedError),
    (500, None, errors.ServerError),
    (503, None, errors.OverloadedError),
    (529, None, errors.OverloadedError),
    (200, Fault.BROKEN, errors.ServerError),
]


@pytest.mark.parametrize(("status", "fault", "kind"), KINDS)
def test_an_error_status_has_a_class(
    status: int, fault: Fault | None, kind: type[errors.UpstreamStatusError]
) -> None:
    extensions = {} if fault is None else {FAULT: fault}
    error = status_error(httpx.Response(status, content=b"why", extensions=extensions))
    assert type(error) is kind
    assert (error.status, error.body) == (status, "why")


def test_a_status_error_tells_where_it_is_from() -> None:
    call = Call(RequestFacts(model="m"), 3)
    first, second = call.depart("a", 0.0), call.depart("b", 1.0)
    assert isinstance(second, Attempt)
    response = httpx.Response(
        429,
        headers={"retry-after": "7", "x-request-id": "r-1"},
        content=b"{}",
        extensions={
            CALL: call,
            ATTEMPT: first,
            EARLIER: (KeyError("x"),),
            TRACE: (trace := Trace()),
        },
    )
    error = status_error(response)
    assert (error.host, error.model, error.request_id) == ("a", "m", "r-1")
    assert (error.retry_after, error.attempts) == (7.0, 2)
    assert [type(other) for other in error.earlier] == [KeyError]
    assert error.trace is trace


def test_a_body_that_was_not_read_is_left_out() -> None:
    async def unread() -> Any:
        yield b"never"

    assert status_error(httpx.Response(500, content=unread())).body == ""


def test_every_fault_of_an_upstream_error_is_covered() -> None:
    """A new class of errors is BROKEN, which is retried, unless a row above says otherwise."""

    class NewError(UpstreamError):
        code = "new"

    assert fault_of(NewError("x")) is Fault.BROKEN
