import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import respx

from shared.infrastructure.http import (
    ConnectFailedError,
    EnhancedHTTPClient,
    ReadFailedError,
    ResilientTransport,
    TimeoutConfig,
    UpstreamError,
)
from shared.infrastructure.resilience import (
    CallStats,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerLayer,
    CircuitOpenError,
    ConfigurationError,
    DeadlineExceededError,
    ObserveLayer,
    RateLimitConfig,
    RateLimitExceededError,
    RetryConfig,
)

FAST = RetryConfig(base_delay=0.0)


class Upstream:
    """An upstream that plays a list of answers; the last one for ever."""

    def __init__(self, *answers: int | Exception | Callable[[], httpx.Response]) -> None:
        self._answers = answers
        self.requests: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = self._answers[min(len(self.requests), len(self._answers) - 1)]
        self.requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, json={}) if isinstance(answer, int) else answer()


def client(upstream: Upstream, **options: Any) -> EnhancedHTTPClient:
    options.setdefault("retry_config", FAST)
    transport = httpx.MockTransport(upstream)
    return EnhancedHTTPClient("orders", "http://orders.test", transport=transport, **options)


class CutBody(httpx.AsyncByteStream):
    """A body that breaks after its first bytes."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b'{"half":'
        raise httpx.ReadError("connection reset")


async def test_a_post_that_meets_5xx_and_timeouts_is_retried_under_one_idempotency_key() -> None:
    upstream = Upstream(500, httpx.ReadTimeout(""), 503, 200)
    async with client(upstream) as http:
        response = await http.post("/api/endpoint", json={"a": 1})
    assert response.status_code == 200
    assert len(upstream.requests) == 4
    assert len({request.headers["Idempotency-Key"] for request in upstream.requests}) == 1
    assert {request.content for request in upstream.requests} == {b'{"a":1}'}


async def test_two_calls_never_share_an_idempotency_key_and_a_given_one_is_kept() -> None:
    upstream = Upstream(200)
    async with client(upstream) as http:
        await http.post("/a")
        await http.post("/b")
        await http.post("/c", headers={"Idempotency-Key": "mine"})
    keys = [request.headers["Idempotency-Key"] for request in upstream.requests]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


async def test_without_idempotency_keys_a_post_of_unknown_fate_is_not_sent_twice() -> None:
    upstream = Upstream(httpx.ReadError("reset"))
    async with client(upstream, idempotency_keys=False) as http:
        with pytest.raises(ReadFailedError):
            await http.post("/a")
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 429])
async def test_4xx_is_returned_and_not_retried(status: int) -> None:
    upstream = Upstream(status)
    async with client(upstream) as http:
        assert (await http.get("/x")).status_code == status
    assert len(upstream.requests) == 1


async def test_the_last_5xx_answer_is_returned_when_attempts_run_out() -> None:
    upstream = Upstream(503)
    async with client(upstream) as http:
        assert (await http.get("/x")).status_code == 503
    assert len(upstream.requests) == 4


async def test_an_error_is_typed_tells_its_story_and_is_httpxs_own_too() -> None:
    async with client(Upstream(httpx.ConnectError("refused"))) as http:
        with pytest.raises(httpx.ConnectError) as caught:
            await http.get("/x")
    error = caught.value
    assert isinstance(error, ConnectFailedError)
    assert error.to_dict() == {
        "code": "connect_failed",
        "message": "GET orders.test/x: refused",
        "service": None,
        "host": "orders.test",
        "attempts": 4,
        "retry_after": None,
        "phase": "connect",
        "unsent": True,
    }
    assert len(error.earlier) == 3
    assert error.request.url.path == "/x"


async def test_without_retries_an_error_tells_of_its_one_attempt() -> None:
    async with client(Upstream(httpx.ConnectError("refused")), retry_config=None) as http:
        with pytest.raises(ConnectFailedError) as caught:
            await http.get("/x")
    assert caught.value.attempts == 1


async def test_a_429_that_asks_for_hours_does_not_make_anybody_wait_for_hours() -> None:
    upstream = Upstream(lambda: httpx.Response(429, headers={"Retry-After": "7200"}))
    limit = RateLimitConfig(requests_per_second=1000, burst_size=10)
    async with client(upstream, rate_limit_config=limit) as http:
        assert (await http.get("/x")).status_code == 429
        with pytest.raises(RateLimitExceededError) as caught:
            await http.get("/x")
    assert caught.value.retry_after == pytest.approx(7200, abs=5)


async def test_repeated_failures_open_the_breaker_and_nothing_more_is_sent() -> None:
    upstream = Upstream(httpx.ConnectError("refused"))
    breaker = CircuitBreakerConfig(failure_threshold=5)
    async with client(upstream, circuit_breaker_config=breaker) as http:
        for _ in range(3):
            with pytest.raises((ConnectFailedError, CircuitOpenError)):
                await http.get("/x")
        assert len(upstream.requests) == 5
        status = http.get_status()
    assert status["circuit_breaker"]["state"] == "open"
    assert status["error_rate"] == 1.0
    assert status["request_count"] == 3
    assert status["health"]["status"] == "unhealthy"


async def test_a_body_that_breaks_is_a_failed_attempt_and_a_get_is_read_again() -> None:
    upstream = Upstream(
        lambda: httpx.Response(200, stream=CutBody()),
        lambda: httpx.Response(200, json={"whole": 1}),
    )
    async with client(upstream) as http:
        assert (await http.get("/x")).json() == {"whole": 1}
        assert http.get_status()["health"]["checks"] == 2
        assert http.get_status()["error_count"] == 0


async def test_a_streamed_body_that_breaks_is_typed_and_counted_when_it_breaks() -> None:
    upstream = Upstream(lambda: httpx.Response(200, stream=CutBody()))
    breaker = CircuitBreakerConfig(failure_threshold=1)
    async with client(upstream, circuit_breaker_config=breaker) as http:
        async with http.stream("GET", "/x") as response:
            assert http.get_status()["in_flight"] == 1
            with pytest.raises(ReadFailedError):
                await response.aread()
        status = http.get_status()
    assert status["circuit_breaker"]["state"] == "open"
    assert status["in_flight"] == 0
    assert status["error_count"] == 1


async def test_a_stream_left_early_gives_everything_back_and_is_no_failure() -> None:
    upstream = Upstream(lambda: httpx.Response(200, stream=CutBody()))
    async with client(upstream) as http:
        async with http.stream("GET", "/x") as response:
            assert response.status_code == 200
        status = http.get_status()
    assert status["in_flight"] == 0
    assert status["error_count"] == 0


async def test_the_total_timeout_bounds_the_whole_call() -> None:
    async def hang(_request: httpx.Request) -> httpx.Response:
        return await asyncio.get_running_loop().create_future()

    timeouts = TimeoutConfig(total=0.05)
    async with EnhancedHTTPClient(
        "slow", "http://slow.test", timeout_config=timeouts, transport=httpx.MockTransport(hang)
    ) as http:
        with pytest.raises(DeadlineExceededError):
            await http.get("/x")
        assert http.get_status()["circuit_breaker"]["failure_count"] == 0


async def test_the_deadline_cuts_the_time_limits_of_each_attempt() -> None:
    upstream = Upstream(200)
    async with client(upstream, timeout_config=TimeoutConfig(total=3.0, read=30.0)) as http:
        await http.get("/x")
    limits = upstream.requests[0].extensions["timeout"]
    assert 2.0 < limits["read"] <= 3.0
    assert limits["connect"] <= 3.0


async def test_a_429_pauses_every_caller_for_the_time_it_names() -> None:
    upstream = Upstream(lambda: httpx.Response(429, headers={"Retry-After": "30"}), 200)
    limit = RateLimitConfig(requests_per_second=1000, burst_size=10, max_wait=0.1)
    async with client(upstream, rate_limit_config=limit) as http:
        assert (await http.get("/x")).status_code == 429
        assert 29 < http.get_status()["rate_limiter"]["paused_for"] <= 30
        assert http.get_status()["circuit_breaker"]["state"] == "closed"


async def test_credentials_do_not_travel_to_another_origin() -> None:
    upstream = Upstream(200)
    async with client(upstream, headers={"x-api-key": "secret"}) as http:
        for url in ("http://evil.test/x", "https://orders.test/x", "http://orders.test:81/x"):
            with pytest.raises(ConfigurationError, match="credentials"):
                await http.get(url)
        await http.get("http://orders.test/x")
    assert len(upstream.requests) == 1


async def test_the_health_check_path_is_asked_past_the_breaker() -> None:
    upstream = Upstream(httpx.ConnectError("refused"))
    breaker = CircuitBreakerConfig(failure_threshold=1)
    async with client(
        upstream, circuit_breaker_config=breaker, retry_config=None, health_check_path="/health"
    ) as http:
        await asyncio.sleep(0)
        with pytest.raises(UpstreamError):
            await http.get("/x")
        before = len(upstream.requests)
        assert (await http.check_health())["consecutive_failures"] >= 2
        assert len(upstream.requests) == before + 1
        assert upstream.requests[-1].url.path == "/health"


@pytest.mark.parametrize(
    "options",
    [{"verify": False}, {"service_name": ""}],
)
def test_dangerous_or_empty_options_are_configuration_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        EnhancedHTTPClient(**{"service_name": "x", "base_url": "http://x.test", **options})


async def test_any_sdk_on_httpx_gets_the_layers_through_a_transport() -> None:
    stats, breaker = CallStats(), CircuitBreaker("sdk", CircuitBreakerConfig(failure_threshold=1))
    transport = ResilientTransport(
        httpx.MockTransport(Upstream(200, 500)), ObserveLayer(stats), CircuitBreakerLayer(breaker)
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://sdk.test") as plain:
        assert (await plain.get("/")).status_code == 200
        assert (await plain.get("/")).status_code == 500
        with pytest.raises(CircuitOpenError):
            await plain.get("/")
    assert stats.snapshot()["request_count"] == 3
    assert stats.snapshot()["in_flight"] == 0


@respx.mock
async def test_respx_answers_for_the_service_if_told_to_look_at_the_native_transport() -> None:
    route = respx.get("http://orders.test/x")
    route.side_effect = [httpx.Response(503), httpx.Response(200, text="ok")]
    seen_by_respx = httpx.AsyncHTTPTransport()
    async with EnhancedHTTPClient(
        "orders", "http://orders.test", transport=seen_by_respx, retry_config=FAST
    ) as http:
        assert (await http.get("/x")).text == "ok"
    assert route.call_count == 2
