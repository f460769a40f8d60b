"""What a pool tells of its calls, and what it spends on retrying them."""

import asyncio

import httpx
import pytest

from shared.infrastructure.http import ConnectFailedError
from shared.infrastructure.resilience import (
    RetryBudget,
    RetryBudgetConfig,
    RetryConfig,
    Trace,
)
from tests.unit.balancing.pools import CHAT, Mocks

BODY = {"messages": []}


def told(trace: Trace | None) -> list[str]:
    assert trace is not None
    return [str(entry.event) for entry in trace.entries if entry.event.service == "llm"]


async def test_an_answer_tells_which_host_each_attempt_went_to_and_what_came_of_it() -> None:
    async with Mocks(a=503, b=200).pool() as pool:
        response = await pool.post(CHAT, json=BODY)
    assert told(response.extensions["trace"]) == [
        "attempt 1 failed: a: 503",
        "paid 10 of the retry budget, 990 left",
        "retry in 0 s: another host is free",
        "attempt 2 ok: b: 200",
    ]


async def test_an_error_tells_it_too() -> None:
    mocks = Mocks(a=httpx.ConnectError("refused"))
    async with mocks.pool(retry_config=RetryConfig(max_retries=1, base_delay=0.0)) as pool:
        with pytest.raises(ConnectFailedError) as caught:
            await pool.post(CHAT, json=BODY)
    story = told(caught.value.trace)
    assert story[0] == f"attempt 1 failed: a: ConnectFailedError: POST a{CHAT}: refused"
    assert story[-1] == "gave up: no attempt is left"


async def test_an_sdk_on_the_pools_transport_gets_the_trace_with_its_answer() -> None:
    pool = Mocks(a=503, b=200).pool()
    async with pool, httpx.AsyncClient(transport=pool.transport) as client:
        response = await client.post(f"http://any{CHAT}", json=BODY)
    assert told(response.extensions["trace"])[-1] == "attempt 2 ok: b: 200"


async def test_all_calls_in_flight_at_a_host_that_dies_go_on_elsewhere() -> None:
    async with Mocks(a=httpx.ConnectError("died"), b=200).pool(circuit_breaker_config=None) as pool:
        answers = await asyncio.gather(*(pool.post(CHAT, json=BODY) for _ in range(200)))
        assert {answer.status_code for answer in answers} == {200}
        budget = pool.get_status()["retry_budget"]
    assert (budget["enabled"], budget["capacity"]) == (True, 1000.0)
    assert budget["refused_count"] == 0
    assert budget["spent_count"] == 100


async def test_when_all_hosts_are_down_the_budget_bounds_what_retries_add() -> None:
    budget = RetryBudget(RetryBudgetConfig(capacity=30, min_retries_per_second=0))
    mocks = Mocks(a=503, b=503)
    # Not started, so that no health checks are among the calls.
    config = RetryConfig(base_delay=0.0)
    pool = mocks.pool(retry_budget=budget, circuit_breaker_config=None, retry_config=config)
    answers = await asyncio.gather(*(pool.post(CHAT, json=BODY) for _ in range(50)))
    await pool.stop()
    assert len(mocks.calls) == 53
    assert {answer.status_code for answer in answers} == {503}


async def test_without_a_budget_every_call_gets_all_its_retries() -> None:
    mocks = Mocks(a=503)
    config = RetryConfig(max_retries=2, base_delay=0.0)
    pool = mocks.pool(retry_budget=None, retry_config=config, circuit_breaker_config=None)
    for _ in range(60):
        await pool.post(CHAT, json=BODY)
    assert pool.get_status()["retry_budget"] == {"enabled": False}
    await pool.stop()
    assert len(mocks.calls) == 180
