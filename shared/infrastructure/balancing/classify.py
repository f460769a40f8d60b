"""Tell which `Fault` an outcome is: by what the error calls itself first, by its status second.

The names are those of OpenAI, Azure, Anthropic, Google, OpenRouter, vLLM, SGLang and llama-server.
"""

from __future__ import annotations

import asyncio
import re
from typing import cast

import httpx

from shared.infrastructure.balancing import errors
from shared.infrastructure.balancing.call import ATTEMPT, CALL, FAULT, Attempt, Call, JSONObject
from shared.infrastructure.balancing.errors import UpstreamStatusError
from shared.infrastructure.balancing.faults import Fault
from shared.infrastructure.balancing.patience import wait_asked
from shared.infrastructure.http import (
    CredentialError,
    LocalProtocolViolationError,
    PoolTimeoutError,
    ReadTimeoutError,
    UnprocessedError,
    UpstreamError,
    WriteTimeoutError,
)
from shared.infrastructure.http.extensions import TRACE
from shared.infrastructure.resilience import AttemptTimeoutError
from shared.infrastructure.resilience.hedge import OVERTAKEN

EARLIER = "earlier"
"""Response extension: the errors of the other attempts of its call, oldest first."""

_NAMES: dict[Fault, str] = {
    Fault.CONTEXT_WINDOW: (
        "context_length_exceeded exceed_context_size_error token_limit_exceeded "
        "context_window_exceeded model_context_window_exceeded"
    ),
    Fault.CONTENT_FILTER: (
        "content_filter content_policy_violation responsibleaipolicyviolation moderation_blocked "
        "content_filtered refusal data_inspection_failed"
    ),
    Fault.MISCONFIGURED: (
        "insufficient_quota billing_error billing_hard_limit_reached billing_not_active "
        "insufficient_balance payment_required account_deactivated invalid_api_key "
        "authentication_error authentication invalid_authentication unauthenticated token_expired "
        "permission_error permission_denied invalid_organization mismatched_organization "
        "unsupported_country_region_territory"
    ),
    Fault.THROTTLED: (
        "rate_limit_exceeded rate_limit_error rate_limit_reached ratelimitreached "
        "too_many_requests toomanyrequests resource_exhausted throttlingexception"
    ),
    Fault.NO_MODEL: "model_not_found not_found_error deploymentnotfound notfounderror not_found",
    Fault.OVERLOADED: (
        "overloaded_error overloaded engine_overloaded server_overloaded model_overloaded "
        "provider_overloaded slow_down capacity_exceeded unavailable_error unavailable "
        "service_unavailable serviceunavailableerror"
    ),
}
_FAULTS = {name: fault for fault, names in _NAMES.items() for name in names.split()}

# Names that say no more than a status does: they count where there is no status.
_VAGUE: dict[Fault, str] = {
    Fault.REJECTED: (
        "invalid_request_error invalid_request badrequesterror invalid_argument "
        "not_supported_error unprocessable payload_too_large request_too_large"
    ),
}
_VAGUE_FAULTS = {name: fault for fault, names in _VAGUE.items() for name in names.split()}

# Some have no name for these, only a sentence.
_TOO_LONG = re.compile(
    r"maximum (?:context|model) length|prompt is too long|input is too long"
    r"|exceed[^.]{0,80}context|context (?:length|window|size|limit)[^.]{0,40}exceed"
    r"|longer than the model's context|exceeds the maximum number of (?:input )?tokens"
    r"|must have less than \d+ tokens|max_new_tokens. must be",
    re.IGNORECASE,
)
_FORBIDDEN = re.compile(
    r"content (?:management |filtering )?policy|usage policy|flagged as potentially violating",
    re.IGNORECASE,
)
_NO_MONEY = re.compile(r"credit balance is too low", re.IGNORECASE)
# Statuses under which a sentence may say more.
_WORDY = frozenset({400, 403, 413, 422, 500})

_STATUS = re.compile("[45][0-9][0-9]")
_BY_STATUS = {
    401: Fault.MISCONFIGURED,
    402: Fault.MISCONFIGURED,
    403: Fault.MISCONFIGURED,
    404: Fault.NO_MODEL,
    408: Fault.BROKEN,
    429: Fault.THROTTLED,
    501: Fault.REJECTED,
    503: Fault.OVERLOADED,
    505: Fault.REJECTED,
    529: Fault.OVERLOADED,
}


def fault_of_error(status: int, error: JSONObject | None) -> Fault:
    """Return the fault that an error response, or an error inside a 200, stands for.

    Args:
        status: Of the response; below 400, the status that the error names, or else 500.
        error: The error object of the body; None if it has none.
    """
    if error is None:
        return _by_status(status)
    if "flagged_input" in _object(error.get("metadata")):  # OpenRouter, with a 403
        return Fault.CONTENT_FILTER
    names = _names_of(error)
    for name in names:
        if name in _FAULTS:
            return _FAULTS[name]
    if status < 400:
        vague = next((_VAGUE_FAULTS[name] for name in names if name in _VAGUE_FAULTS), None)
        status = status_in(error) or (400 if vague else 500)
    return _by_message(status, error) or _by_status(status)


def status_in(error: JSONObject) -> int | None:
    """Return the HTTP status that an error names; None if it names none."""
    for key in ("code", "status", "status_code"):
        value = error.get(key)
        text = value if isinstance(value, int | str) else ""
        if _STATUS.fullmatch(str(text)):
            return int(text)
    return None


def fault_of(outcome: httpx.Response | BaseException) -> Fault | None:
    """Return why an attempt gave no answer; None if it gave one."""
    if isinstance(outcome, BaseException):
        return _fault_of_exception(outcome)
    fault: Fault | None = outcome.extensions.get(FAULT)
    if fault is None:
        if outcome.status_code < 400:
            return None
        fault = _by_status(outcome.status_code)
    if fault is Fault.REJECTED and outcome.headers.get("x-should-retry") == "true":
        return Fault.BROKEN
    return fault


def note_silence(error: asyncio.CancelledError, attempt: Attempt) -> None:
    """Take note, on what ends an attempt that was sent, whether its host was silent too long.

    So it was if a later leg of its race had its answer while this one had no content yet.
    """
    if OVERTAKEN in error.args and attempt.first_token_at is None:
        vars(error)[FAULT] = Fault.SILENT


def status_error(response: httpx.Response) -> UpstreamStatusError:
    """Return the error that a response stands for; its body was read, as far as it will be."""
    call: Call | None = response.extensions.get(CALL)
    attempt: Attempt | None = response.extensions.get(ATTEMPT)
    fault = fault_of(response)
    error = _class_of(response.status_code, fault)(
        response.status_code,
        _text(response),
        retry_after=wait_asked(response, fault),
        model=call.facts.model if call else None,
        request_id=response.headers.get("x-request-id") or response.headers.get("request-id"),
    )
    error.host = attempt.host if attempt else call.host if call else None
    error.attempts = len(call.attempts) if call else 1
    error.earlier = response.extensions.get(EARLIER, ())
    error.trace = response.extensions.get(TRACE, error.trace)
    return error


def _names_of(error: JSONObject) -> list[str]:
    """Return what the error calls itself, the most precise first, in lower case."""
    inner, metadata = _object(error.get("innererror")), _object(error.get("metadata"))
    values = (
        inner.get("code"),
        error.get("code"),
        metadata.get("error_type"),
        error.get("type"),
        error.get("status"),
    )
    return [value.lower() for value in values if isinstance(value, str)]


def _by_message(status: int, error: JSONObject) -> Fault | None:
    if status not in _WORDY:
        return None
    message = str(error.get("message", ""))
    if _FORBIDDEN.search(message):
        return Fault.CONTENT_FILTER
    if _TOO_LONG.search(message):
        return Fault.CONTEXT_WINDOW
    return Fault.MISCONFIGURED if _NO_MONEY.search(message) else None


def _by_status(status: int) -> Fault:
    fault = _BY_STATUS.get(status)
    if fault is None:
        return Fault.REJECTED if 400 <= status < 500 else Fault.BROKEN
    return fault


_BY_EXCEPTION: tuple[tuple[type[BaseException], Fault], ...] = (
    (AttemptTimeoutError, Fault.SILENT),
    (ReadTimeoutError, Fault.SILENT),
    (WriteTimeoutError, Fault.SILENT),
    (PoolTimeoutError, Fault.OURS),
    (LocalProtocolViolationError, Fault.OURS),
    (UnprocessedError, Fault.THROTTLED),
    (errors.ContextWindowError, Fault.CONTEXT_WINDOW),
    (errors.ContentFilterError, Fault.CONTENT_FILTER),
    (errors.InsufficientQuotaError, Fault.MISCONFIGURED),
    (CredentialError, Fault.MISCONFIGURED),
)


def _fault_of_exception(error: BaseException) -> Fault:
    known = getattr(error, FAULT, None)
    if isinstance(known, Fault):  # an error inside an answer that had begun well
        return known
    for kind, fault in _BY_EXCEPTION:
        if isinstance(error, kind):
            return fault
    if isinstance(error, UpstreamStatusError):
        return _by_status(error.status)
    return Fault.BROKEN if isinstance(error, UpstreamError) else Fault.OURS


_CLASSES: dict[int, type[UpstreamStatusError]] = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    402: errors.PaymentRequiredError,
    403: errors.PermissionDeniedError,
    404: errors.ModelNotFoundError,
    409: errors.ConflictError,
    422: errors.UnprocessableError,
    429: errors.RateLimitedError,
    503: errors.OverloadedError,
    529: errors.OverloadedError,
}
# What a fault says more plainly than the status does.
_BY_FAULT: dict[Fault, type[UpstreamStatusError]] = {
    Fault.CONTEXT_WINDOW: errors.ContextWindowError,
    Fault.CONTENT_FILTER: errors.ContentFilterError,
    Fault.THROTTLED: errors.RateLimitedError,
    Fault.OVERLOADED: errors.OverloadedError,
    Fault.NO_MODEL: errors.ModelNotFoundError,
}


def _class_of(status: int, fault: Fault | None) -> type[UpstreamStatusError]:
    if fault is Fault.MISCONFIGURED and status == 429:
        return errors.InsufficientQuotaError
    if fault is not None and fault in _BY_FAULT:
        return _BY_FAULT[fault]
    if status in _CLASSES:
        return _CLASSES[status]
    return UpstreamStatusError if 400 <= status < 500 else errors.ServerError


def _text(response: httpx.Response) -> str:
    try:
        return response.text
    except httpx.ResponseNotRead:
        return ""


def _object(value: object) -> JSONObject:
    return cast("JSONObject", value) if isinstance(value, dict) else {}
