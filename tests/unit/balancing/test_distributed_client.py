import asyncio
from collections import Counter

import httpx
import pytest

from shared.infrastructure.balancing import (
    LoadBalancingStrategy,
    NoHostAvailableError,
    NotRunningError,
)
from shared.infrastructure.resilience import (
    BulkheadConfig,
    ConfigurationError,
    HealthConfig,
    RateLimitConfig,
)
from shared.infrastructure.testing import FakeClock
from tests.unit.balancing.pools import CHAT, Mocks


async def test_100_chat_calls_follow_the_weights_to_the_call() -> None:
    mocks = Mocks(a=200, b=200, c=200)
    pool = mocks.pool(weights={"a": 2.0})
    await asyncio.gather(*(pool.post(CHAT, json={}) for _ in range(100)))
    assert mocks.counts() == {"a": 50, "b": 25, "c": 25}
    assert max(Counter(mocks.calls[at : at + 4])["a"] for at in range(97)) <= 3


async def test_least_loaded_gives_calls_to_the_hosts_that_have_the_fewest() -> None:
    slow = asyncio.Event()
    mocks = Mocks(a=slow, b=200, c=200)
    pool = mocks.pool(strategy=LoadBalancingStrategy.LEAST_LOADED)
    pool.disable_host("b")
    pool.disable_host("c")
    stuck = [asyncio.create_task(pool.post(CHAT, json={})) for _ in range(3)]
    await mocks.until_called(3)
    pool.enable_host("b")
    pool.enable_host("c")
    for _ in range(20):
        await pool.post(CHAT, json={})
    assert mocks.counts()["a"] == 3
    slow.set()
    await asyncio.gather(*stuck)


async def test_a_disabled_host_gets_nothing_more_and_finishes_what_it_has() -> None:
    gate = asyncio.Event()
    mocks = Mocks(a=gate, b=200)
    pool = mocks.pool()
    running = asyncio.create_task(pool.post(CHAT, json={}))
    await mocks.until_called(1)
    pool.disable_host("a")
    for _ in range(4):
        await pool.post(CHAT, json={})
    assert mocks.counts() == {"a": 1, "b": 4}
    gate.set()
    assert (await running).status_code == 200
    pool.disable_host("b")
    with pytest.raises(NoHostAvailableError):
        await pool.post(CHAT, json={})
    pool.enable_host("a")
    await pool.post(CHAT, json={})
    assert mocks.counts()["a"] == 2
    with pytest.raises(ConfigurationError, match="no host 'x': the hosts are a, b"):
        pool.disable_host("x")


async def test_a_call_waits_in_line_only_if_it_would_everywhere() -> None:
    gates = {name: asyncio.Event() for name in "ab"}
    mocks = Mocks(a=gates["a"], b=gates["b"])
    pool = mocks.pool(bulkhead_config=BulkheadConfig(max_concurrent=2), weights={"a": 100.0})
    calls = [asyncio.create_task(pool.post(CHAT, json={})) for _ in range(5)]
    await asyncio.sleep(0.01)
    assert mocks.counts() == {"a": 2, "b": 2}
    for gate in gates.values():
        gate.set()
    await asyncio.gather(*calls)
    assert len(mocks.calls) == 5


async def test_a_host_without_a_permit_is_passed_over() -> None:
    limit = RateLimitConfig(requests_per_second=1.0, burst_size=1, max_wait=0.0)
    mocks = Mocks(a=200, b=200)
    pool = mocks.pool(rate_limit_config=limit, weights={"a": 100.0})
    await pool.post(CHAT, json={})
    await pool.post(CHAT, json={})
    assert mocks.counts() == {"a": 1, "b": 1}
    with pytest.raises(NoHostAvailableError) as caught:
        await pool.post(CHAT, json={})
    assert caught.value.retry_after == pytest.approx(1.0)
    assert "permit" in caught.value.reasons["a"]


async def test_all_hosts_are_asked_for_their_health_at_once_the_disabled_too() -> None:
    gate = asyncio.Event()
    mocks = Mocks(a=gate, b=gate, c=503, d=httpx.ConnectError("refused"))
    pool = mocks.pool()
    pool.disable_host("b")
    check = asyncio.create_task(pool.health_check_all())
    await mocks.until_called(4)
    gate.set()
    health = await check
    assert {name: health[name]["status"] for name in health} == {
        "a": "healthy",
        "b": "healthy",
        "c": "degraded",
        "d": "degraded",
    }
    assert "503" in health["c"]["last_error"]
    assert health["a"]["response_time"] >= 0.0


async def test_every_host_is_checked_again_and_again_until_the_pool_stops() -> None:
    clock = FakeClock()
    mocks = Mocks(a=200, b=500)
    pool = mocks.pool(
        clock=clock,
        health_config=HealthConfig(interval=10.0, unhealthy_after=2, edge_interval=None),
    )
    before = asyncio.all_tasks()
    await pool.start()
    await pool.start()
    await clock.advance(25.0)
    assert mocks.counts() == {"a": 3, "b": 3}
    hosts = pool.get_metrics()["hosts"]
    assert hosts["a"]["health"]["status"] == "healthy"
    assert hosts["b"]["health"]["status"] == "unhealthy"
    assert hosts["b"]["circuit_breaker"]["failure_count"] == 0
    await pool.stop()
    await pool.stop()
    assert asyncio.all_tasks() == before
    assert clock.pending == 0


async def test_a_stopped_pool_says_so() -> None:
    pool = Mocks(a=200).pool()
    async with pool:
        assert pool.get_status()["running"]
    assert not pool.get_status()["running"]
    with pytest.raises(NotRunningError, match="has been stopped"):
        await pool.post(CHAT, json={})
    with pytest.raises(NotRunningError):
        await pool.start()
    with pytest.raises(NotRunningError):
        await pool.health_check_all()


async def test_metrics_count_attempts_by_host_and_calls_in_total() -> None:
    pool = Mocks(a=500, b=200).pool(weights={"b": 3.0})
    for _ in range(8):
        await pool.post(CHAT, json={})
    metrics = pool.get_metrics()
    assert metrics["totals"]["request_count"] == 8
    assert metrics["totals"]["error_rate"] == 0.0
    assert metrics["totals"]["failover_count"] == 2
    a, b = metrics["hosts"]["a"], metrics["hosts"]["b"]
    assert (a["request_count"], a["error_count"]) == (2, 2)
    assert (b["request_count"], b["error_count"], b["weight"]) == (8, 0, 3.0)
    assert a["circuit_breaker"]["state"] == "closed"
    assert {"url", "enabled", "in_flight", "average_response_time", "health"} <= a.keys()


async def test_the_pool_is_a_transport_for_any_client_and_outlives_it() -> None:
    mocks = Mocks(a=[503, 200], b=200)
    pool = mocks.pool()
    async with httpx.AsyncClient(transport=pool.transport, base_url="http://llm") as client:
        response = await client.post(CHAT, json={"messages": []})
        assert response.json()["choices"][0]["message"]["content"] == "from b"
        assert response.request.url == "http://llm/v1/chat/completions"
    assert (await pool.post(CHAT, json={})).status_code == 200


async def test_one_request_may_be_sent_many_times_at_once() -> None:
    mocks = Mocks(a=503, b=200)
    pool = mocks.pool(circuit_breaker_config=None)
    async with httpx.AsyncClient(transport=pool.transport, base_url="http://llm") as client:
        request = client.build_request("POST", CHAT, json={})
        extensions = dict(request.extensions)
        answers = await asyncio.gather(*(client.send(request) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert mocks.counts()["b"] == 20
    assert request.extensions == extensions
    assert request.headers["Host"] == "llm"
