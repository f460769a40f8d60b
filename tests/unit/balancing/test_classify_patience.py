"""How long a host asks to wait: in header fields, or in what it says."""

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.infrastructure.balancing.call import ATTEMPT, CALL, FAULT, Attempt
from shared.infrastructure.balancing.classify import fault_of, fault_of_error, status_error
from shared.infrastructure.balancing.errors import RateLimitedError
from shared.infrastructure.balancing.semantics import POOL, WireSemantics
from shared.infrastructure.http import ReadFailedError
from tests.unit.balancing.scripted_hosts import call_for, request_of

NAMES = st.sampled_from(
    ["code", "type", "message", "status", "metadata", "innererror", "details", "headers", "error"]
) | st.text(max_size=5)
HEADERS: list[tuple[dict[str, str], float | None]] = [
    ({"retry-after": "2"}, 2.0),
    ({"retry-after": "0.5"}, 0.5),
    ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
    (
        {
            "retry-after": "Wed, 21 Oct 2026 07:28:30 GMT",
            "date": "Wed, 21 Oct 2026 07:28:00 GMT",
        },
        30.0,
    ),
    ({"retry-after": "soon"}, None),
    ({}, None),
]
BODIES: list[tuple[Any, float | None]] = [
    ({"error": {"message": "Rate limit reached. Please try again in 6m0s."}}, 360.0),
    ({"error": {"message": "Please try again in 7.66s. Need more?"}}, 7.66),
    ({"error": {"message": "Please try again in 850ms."}}, 0.85),
    ({"error": {"message": "Please retry after 12 seconds."}}, 12.0),
    ({"error": {"message": "try again in 1h2m3s"}}, 3723.0),
    ({"error": {"message": "Please wait for 2 minutes"}}, 120.0),
    ({"error": {"message": "Please try again later."}}, None),
    ({"error": {"message": None}}, None),
    ({"object": "error", "message": "retry in 3s"}, 3.0),
    ([{"error": {"details": [{"@type": "RetryInfo", "retryDelay": "34s"}]}}], 34.0),
    ({"error": {"details": ["odd", {"retryDelay": "1.5s"}]}}, 1.5),
    ({"error": {"details": "odd"}}, None),
    ({"error": {"details": 5}}, None),
    ({"error": {"message": f"try again in {'9' * 400}s"}}, None),
    ({"error": {"metadata": {"headers": {"Retry-After": "9"}}}}, 9.0),
    ({"error": {"metadata": {"headers": "odd"}}}, None),
    ({"error": "odd"}, None),
    ("odd", None),
    ([], None),
]


@pytest.mark.parametrize(("headers", "seconds"), HEADERS)
def test_the_header_says_how_long(headers: dict[str, str], seconds: float | None) -> None:
    assert POOL.retry_after(httpx.Response(429, headers=headers)) == seconds


@pytest.mark.parametrize(("body", "seconds"), BODIES)
@pytest.mark.parametrize("status", [429, 503])
def test_where_the_header_does_not_the_body_may(
    status: int, body: object, seconds: float | None
) -> None:
    wait = POOL.retry_after(httpx.Response(status, json=body))
    assert wait == (seconds if seconds is None else pytest.approx(seconds))


def test_a_header_comes_first() -> None:
    body = {"error": {"message": "try again in 9s"}}
    assert POOL.retry_after(httpx.Response(429, headers={"retry-after": "2"}, json=body)) == 2.0


def test_other_errors_ask_for_nothing() -> None:
    body = {"error": {"message": "do not try again in 9s"}}
    assert POOL.retry_after(httpx.Response(400, json=body)) is None


def test_a_body_that_is_no_json_or_was_not_read_asks_for_nothing() -> None:
    async def unread() -> Any:
        yield b"{}"

    assert POOL.retry_after(httpx.Response(429, content=b"<html>")) is None
    assert POOL.retry_after(httpx.Response(429, content=unread())) is None


def test_an_error_that_is_raised_knows_it_too() -> None:
    body = {"error": {"message": "try again in 9s"}}
    error = status_error(httpx.Response(429, json=body))
    assert (error.retry_after, POOL.retry_after(error)) == (9.0, 9.0)


def test_an_error_knows_for_itself() -> None:
    assert POOL.retry_after(RateLimitedError(429, "", retry_after=3.0)) == 3.0


def test_a_request_may_be_repeated_as_long_as_attempts_are_left() -> None:
    request = request_of(call := call_for(max_attempts=1))
    assert POOL.repeatable(request, httpx.Response(500))
    call.depart("a", 0.0)
    assert not POOL.repeatable(request, httpx.Response(500))


def test_an_outcome_is_described_with_its_own_host() -> None:
    request = request_of(call := call_for())
    response = httpx.Response(503, extensions={CALL: call, ATTEMPT: Attempt("a", 0.0)})
    error = ReadFailedError("reset", host="b")
    call.depart("c", 0.0)
    assert POOL.describe(request, response) == "a: 503"
    assert POOL.describe(request, error) == "b: ReadFailedError: reset"
    assert POOL.describe(request, KeyError("x")) == "c: KeyError: 'x'"
    assert POOL.describe(httpx.Request("GET", "http://x"), httpx.Response(200)) == "200"


def test_on_the_wire_only_a_body_at_hand_may_go_again() -> None:
    request = request_of()
    assert WireSemantics().repeatable(request, httpx.Response(500))
    request.stream = httpx.AsyncByteStream()
    assert not WireSemantics().repeatable(request, httpx.Response(500))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("try again in 3s"),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
    max_leaves=10,
)


@given(st.dictionaries(NAMES, VALUES), st.sampled_from([200, 400, 403, 429, 500, 503]))
def test_nothing_that_a_host_may_say_breaks_the_reading(error: dict[str, Any], status: int) -> None:
    fault = fault_of_error(status, error)
    response = httpx.Response(status, json={"error": error}, extensions={FAULT: fault})
    assert fault_of(response) is fault
    assert (POOL.retry_after(response) or 0.0) >= 0.0
    assert status_error(response).status == status
