import asyncio

import httpx
import pytest

from shared.infrastructure.http import HTTP
from shared.infrastructure.http import errors as http_errors
from shared.infrastructure.http.semantics import parse_retry_after
from shared.infrastructure.resilience import (
    AttemptTimeoutError,
    CallRefusedError,
    DeadlineExceededError,
    Verdict,
)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, Verdict.OK),
        (304, Verdict.OK),
        (400, Verdict.OK),
        (404, Verdict.OK),
        (429, Verdict.BUSY),
        (500, Verdict.FAILED),
        (501, Verdict.OK),
        (503, Verdict.FAILED),
        (599, Verdict.FAILED),
    ],
)
def test_a_status_is_judged_by_what_it_says_about_the_service(
    status: int, verdict: Verdict
) -> None:
    assert HTTP.judge(httpx.Response(status)) is verdict


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (http_errors.ConnectFailedError("refused"), Verdict.FAILED),
        (http_errors.ReadTimeoutError("silent"), Verdict.FAILED),
        (http_errors.PoolTimeoutError("our own pool"), Verdict.VOID),
        (http_errors.LocalProtocolViolationError("bad header"), Verdict.VOID),
        (AttemptTimeoutError("slow"), Verdict.FAILED),
        (DeadlineExceededError("the caller's patience"), Verdict.VOID),
        (CallRefusedError("no"), Verdict.VOID),
        (asyncio.CancelledError(), Verdict.VOID),
    ],
)
def test_an_error_is_judged_by_whose_fault_it_is(error: BaseException, verdict: Verdict) -> None:
    assert HTTP.judge(error) is verdict


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"retry-after-ms": "250", "Retry-After": "7"}, 0.25),
        (
            {
                "Date": "Sat, 21 Nov 2026 10:00:00 GMT",
                "Retry-After": "Sat, 21 Nov 2026 10:00:30 GMT",
            },
            30.0,
        ),
        (
            {
                "Date": "Sat, 21 Nov 2026 10:00:00 GMT",
                "Retry-After": "Sat, 21 Nov 2026 09:00:00 GMT",
            },
            0.0,
        ),
    ],
)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert parse_retry_after(httpx.Headers(headers)) == seconds


def test_only_what_is_safe_is_sent_again() -> None:
    async def once() -> object:
        yield b"one-shot"

    reset, refused = http_errors.ReadFailedError("reset"), http_errors.ConnectFailedError("refused")
    get = httpx.Request("GET", "http://h/")
    post = httpx.Request("POST", "http://h/", json={})
    keyed = httpx.Request("POST", "http://h/", json={}, headers={"Idempotency-Key": "k"})
    streamed = httpx.Request("PUT", "http://h/", content=once())
    assert HTTP.repeatable(get, reset)
    assert HTTP.repeatable(keyed, reset)
    assert not HTTP.repeatable(post, reset)
    assert HTTP.repeatable(post, refused)
    assert not HTTP.repeatable(streamed, refused)
