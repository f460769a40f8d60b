"""How layers read an HTTP exchange; the same for every HTTP library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar

from shared.infrastructure.http.errors import UpstreamError
from shared.infrastructure.http.extensions import REPLAYABLE
from shared.infrastructure.resilience import AttemptTimeoutError, Verdict
from shared.infrastructure.resilience.layer import Settle, summary

WHOLE_BODIES: set[type] = set()
"""Classes of request bodies that are there as a whole; each HTTP library has one."""

_OK = Verdict.OK
# What the services behind the SDKs of OpenAI, Anthropic and others add to an answer.
_SHOULD_RETRY = "x-should-retry"
# RFC 9110, section 9.2.2.
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
# Definite answers of a healthy server, for all that their number begins with a five.
_FINAL_5XX = frozenset({501, 505})


class HTTPRequest(Protocol):
    """What the layers need of a request."""

    @property
    def method(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def stream(self) -> object: ...
    @property
    def extensions(self) -> Mapping[str, Any]: ...


class HTTPResponse(Protocol):
    """What the layers need of a response."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    async def aclose(self) -> None: ...


Response = TypeVar("Response", bound=HTTPResponse)


class HTTPSemantics:
    """Semantics of one HTTP exchange.

    FAILED: broken or silent connections, 5xx, and 4xx with `x-should-retry: true`. BUSY: 429. OK:
    everything else that was answered, 4xx included, since a client's mistake says nothing against
    the server. VOID: cancelled calls, our own refusals, and mistakes made on our side.
    `x-should-retry` also decides whether a request may be sent again after an answer.
    """

    def judge(self, outcome: HTTPResponse | BaseException) -> Verdict:
        if isinstance(outcome, BaseException):
            if isinstance(outcome, UpstreamError):
                return outcome.verdict
            return Verdict.FAILED if isinstance(outcome, AttemptTimeoutError) else Verdict.VOID
        status = outcome.status_code
        if status < 400:
            return _OK
        if status == 429:
            return Verdict.BUSY
        if status < 500:
            return Verdict.FAILED if outcome.headers.get(_SHOULD_RETRY) == "true" else _OK
        return _OK if status in _FINAL_5XX else Verdict.FAILED

    def watch(self, response: Response, settle: Settle) -> Response:
        body: object = getattr(response, "stream", None)
        on_over = getattr(body, "on_over", None)
        if on_over is None:
            settle(self.judge(response))
        else:
            on_over(settle)
        return response

    def retry_after(self, outcome: HTTPResponse | BaseException) -> float | None:
        if isinstance(outcome, BaseException):
            return getattr(outcome, "retry_after", None)
        return parse_retry_after(outcome.headers)

    def repeatable(self, request: HTTPRequest, outcome: HTTPResponse | BaseException) -> bool:
        if not is_replayable(request):
            return False
        if isinstance(outcome, UpstreamError):
            if outcome.is_final or outcome.unsent:
                return not outcome.is_final
        elif not isinstance(outcome, BaseException):
            advice = outcome.headers.get(_SHOULD_RETRY)
            if advice in {"true", "false"}:
                return advice == "true"
        return request.method in _IDEMPOTENT or "idempotency-key" in request.headers

    def describe(self, request: HTTPRequest, outcome: HTTPResponse | BaseException) -> str:
        if isinstance(outcome, BaseException):
            return summary(outcome)
        return str(outcome.status_code)

    async def discard(self, response: HTTPResponse) -> None:
        await response.aclose()


HTTP = HTTPSemantics()
"""The semantics of plain HTTP services."""


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a response asks to wait, from `retry-after-ms` or `Retry-After`.

    Both forms of RFC 9110, section 10.2.3, are read; a date is taken relative to the response's
    own `Date`, so that a wrong clock on either side does not matter. Nonsense is None.
    """
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000.0
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = _seconds(value)
    if seconds is not None:
        return seconds
    until = _date(value)
    if until is None:
        return None
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError, TypeError, IndexError):  # of a date that is nonsense
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def is_replayable(request: HTTPRequest) -> bool:
    """Say whether the body of a request can be sent again, just as it was."""
    # `request.content` would not do: a request that follows a redirect has none.
    return type(request.stream) in WHOLE_BODIES or bool(request.extensions.get(REPLAYABLE))
