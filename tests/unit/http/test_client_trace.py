"""What a client tells of its calls, and what it spends on retrying them."""

import httpx
import pytest

from shared.infrastructure.http import ConnectFailedError, EnhancedHTTPClient
from shared.infrastructure.resilience import (
    CircuitBreakerConfig,
    CircuitOpenError,
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
    Trace,
    trace_call,
)

FAST = RetryConfig(base_delay=0.0)


class Upstream:
    """An upstream that plays a list of answers; the last one for ever."""

    def __init__(self, *answers: int | Exception) -> None:
        self._answers = answers
        self.requests = 0

    def __call__(self, _request: httpx.Request) -> httpx.Response:
        answer = self._answers[min(self.requests, len(self._answers) - 1)]
        self.requests += 1
        if isinstance(answer, Exception):
            raise answer
        if answer == 302:
            return httpx.Response(302, headers={"Location": "/elsewhere"})
        return httpx.Response(answer, json={})


def client(upstream: Upstream, **options: object) -> EnhancedHTTPClient:
    options.setdefault("retry_config", FAST)
    options.setdefault("circuit_breaker_config", None)
    transport = httpx.MockTransport(upstream)
    return EnhancedHTTPClient("orders", "http://orders.test", transport=transport, **options)  # type: ignore[arg-type]


def told(trace: Trace | None) -> list[str]:
    assert trace is not None
    return [str(entry.event) for entry in trace.entries if entry.event.kind.startswith("attempt")]


async def test_an_answer_carries_the_trace_of_its_call() -> None:
    async with client(Upstream(503, httpx.ReadTimeout("silence"), 200)) as http:
        response = await http.get("/x")
    trace = response.extensions["trace"]
    assert told(trace) == [
        "attempt 1 failed: 503",
        "attempt 2 failed: ReadTimeoutError: GET orders.test/x: silence",
        "attempt 3 ok: 200",
    ]
    assert trace.outcome == "done"


async def test_an_answer_at_once_carries_an_empty_trace() -> None:
    async with client(Upstream(200), retry_config=None) as http:
        assert (await http.get("/x")).extensions["trace"].entries[1:] == ()


async def test_a_streamed_answer_carries_its_trace_before_its_body_is_read() -> None:
    async with client(Upstream(503, 200)) as http, http.stream("GET", "/x") as response:
        assert told(response.extensions["trace"])[-1] == "attempt 2 ok: 200"


async def test_an_error_carries_the_trace_of_its_call() -> None:
    async with client(Upstream(httpx.ConnectError("refused"))) as http:
        with pytest.raises(ConnectFailedError) as caught:
            await http.get("/x")
    trace = caught.value.trace
    assert len(told(trace)) == 4
    assert trace is not None
    assert trace.outcome == "ConnectFailedError: GET orders.test/x: refused"


async def test_a_refusal_carries_the_trace_of_its_call() -> None:
    breaker = CircuitBreakerConfig(failure_threshold=1)
    upstream = Upstream(503)
    async with client(upstream, circuit_breaker_config=breaker) as http:
        with pytest.raises(CircuitOpenError) as caught:
            await http.get("/x")
    trace = caught.value.trace
    assert trace is not None
    assert "gave up: we refused the next attempt ourselves" in str(trace)
    assert "circuit closed -> open" in str(trace)


async def test_a_redirected_call_has_one_trace() -> None:
    async with client(Upstream(302, 503, 200)) as http:
        response = await http.get("/x", follow_redirects=True)
    assert told(response.extensions["trace"]) == ["attempt 1 failed: 503", "attempt 2 ok: 200"]


async def test_a_trace_around_several_calls_gets_all_of_them() -> None:
    async with client(Upstream(503, 200, 503, 200)) as http:
        with trace_call() as whole:
            first, second = await http.get("/x"), await http.get("/x")
    both = told(first.extensions["trace"]) + told(second.extensions["trace"])
    assert told(whole) == both
    assert len(both) == 4


async def test_by_default_a_single_call_gets_all_its_retries() -> None:
    upstream = Upstream(503)
    async with client(upstream) as http:
        await http.get("/x")
        assert upstream.requests == 4
        budget = http.get_status()["retry_budget"]
    assert budget.pop("tokens") == pytest.approx(70.0, abs=5)
    assert budget == {"enabled": True, "capacity": 100.0, "spent_count": 3, "refused_count": 0}


async def test_by_default_an_outage_is_not_answered_with_a_storm() -> None:
    upstream = Upstream(503)
    async with client(upstream) as http:
        for _ in range(100):
            await http.get("/x")
    # Ten from the capacity, and one a second.
    assert 110 <= upstream.requests <= 120


async def test_clients_of_one_origin_may_share_a_budget() -> None:
    budget = RetryBudget(RetryBudgetConfig(capacity=20, min_retries_per_second=0))
    upstream = Upstream(503)
    for _ in range(2):
        async with client(upstream, retry_budget=budget) as http:
            await http.get("/x")
    assert upstream.requests == 2 + 2


@pytest.mark.parametrize("options", [{"retry_budget": None}, {"retry_config": None}])
async def test_a_budget_can_be_switched_off(options: dict[str, None]) -> None:
    upstream = Upstream(503)
    async with client(upstream, **options) as http:
        for _ in range(20):
            await http.get("/x")
        assert http.get_status()["retry_budget"] == {"enabled": False}
    assert upstream.requests == (20 if "retry_config" in options else 80)
