import asyncio
from collections.abc import AsyncIterator, Sequence

import httpx
import pytest

from shared.infrastructure.balancing import Host, NoHostAvailableError, route_of
from shared.infrastructure.http import ConnectFailedError, PoolTimeoutError, TimeoutConfig
from shared.infrastructure.resilience import (
    CircuitBreakerConfig,
    DeadlineExceededError,
    RetryConfig,
)
from shared.infrastructure.testing import FakeClock
from tests.unit.balancing.pools import CHAT, Answer, Mocks, busy

ONE_STRIKE = CircuitBreakerConfig(failure_threshold=1, success_threshold=1, timeout=10.0)
FAILURES: list[Answer] = [
    httpx.ConnectError("refused"),
    httpx.ReadTimeout("silence"),
    httpx.RemoteProtocolError("cut"),
    500,
    502,
    503,
    504,
    429,
]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
async def test_a_failure_goes_on_at_another_host_without_a_wait(failure: Answer) -> None:
    mocks = Mocks(a=failure, b=200)
    pool = mocks.pool()  # its clock stands still: a call that waited would never end
    response = await pool.post(CHAT, json={})
    assert response.json()["choices"][0]["message"]["content"] == "from b"
    assert mocks.calls == ["a", "b"]
    assert (route_of(response).host, route_of(response).attempts) == ("b", 2)
    assert pool.get_metrics()["totals"]["failover_count"] == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 501])
async def test_any_other_answer_is_returned_as_it_is(status: int) -> None:
    mocks = Mocks(a=status, b=200)
    assert (await mocks.pool().post(CHAT, json={})).status_code == status
    assert mocks.calls == ["a"]


async def test_hosts_get_a_second_turn_after_a_wait_when_all_had_their_first() -> None:
    clock = FakeClock()
    mocks = Mocks(a=503, b=503, c=[503, 200])
    call = asyncio.create_task(mocks.pool(clock=clock).post(CHAT, json={}))
    await clock.advance(0.0)
    assert sorted(mocks.calls) == ["a", "b", "c"]
    await clock.advance(3.9)
    assert len(mocks.calls) == 3
    await clock.advance(0.2)
    await call
    assert mocks.calls[3] != mocks.calls[2]


class First:
    def pick(self, candidates: Sequence[Host], /) -> Host:
        return candidates[0]


async def test_a_host_that_failed_comes_again_only_after_all_the_others() -> None:
    clock = FakeClock()
    mocks = Mocks(a=503, b=503, c=503)
    pool = mocks.pool(clock=clock, strategy=First(), retry_config=RetryConfig(max_retries=5))
    call = asyncio.create_task(pool.post(CHAT, json={}))
    await clock.advance(0.0)
    assert mocks.calls == ["a", "b", "c"]
    await clock.advance(4.0)  # one wait for the whole second round
    assert mocks.calls == ["a", "b", "c", "a", "b", "c"]
    assert (await call).status_code == 503


async def test_a_disabled_host_is_not_even_probed() -> None:
    clock = FakeClock()
    mocks = Mocks(a=500, b=200)
    pool = mocks.pool(circuit_breaker_config=ONE_STRIKE, clock=clock)
    await pool.post(CHAT, json={})
    pool.disable_host("a")
    await clock.advance(10.0)
    for _ in range(5):
        await pool.post(CHAT, json={})
    assert mocks.counts() == {"a": 1, "b": 6}


async def test_the_last_outcome_stands_when_attempts_run_out() -> None:
    mocks = Mocks(a=503, b=503)
    response = await mocks.pool(retry_config=RetryConfig(base_delay=0.0)).post(CHAT, json={})
    assert response.status_code == 503
    assert len(mocks.calls) == 4

    mocks = Mocks(a=500, b=httpx.ConnectError("refused"))
    with pytest.raises(ConnectFailedError) as caught:
        await mocks.pool(retry_config=RetryConfig(base_delay=0.0)).post(CHAT, json={})
    error = caught.value
    assert (error.host, error.attempts, len(error.earlier)) == ("b", 4, 1)
    assert isinstance(error, httpx.ConnectError)


async def test_a_refusal_goes_on_within_the_attempt_and_costs_none() -> None:
    mocks = Mocks(a=[500, 200], b=200)
    pool = mocks.pool(circuit_breaker_config=ONE_STRIKE, retry_config=None)
    assert (await pool.post(CHAT, json={})).status_code == 500
    for _ in range(3):
        response = await pool.post(CHAT, json={})
        assert route_of(response).attempts == 1
    assert mocks.calls == ["a", "b", "b", "b"]


async def test_no_host_left_says_why_of_each_and_when_to_come_back() -> None:
    clock = FakeClock()
    mocks = Mocks(a=500, b=500, c=200)
    pool = mocks.pool(circuit_breaker_config=ONE_STRIKE, retry_config=None, clock=clock)
    pool.disable_host("c")
    await pool.post(CHAT, json={})
    await clock.advance(4.0)
    await pool.post(CHAT, json={})
    with pytest.raises(NoHostAvailableError) as caught:
        await pool.post(CHAT, json={})
    error = caught.value
    assert error.reasons.keys() == {"a", "b", "c"}
    assert error.reasons["c"] == "disabled"
    assert "circuit" in error.reasons["a"]
    assert error.retry_after == pytest.approx(6.0)
    assert error.attempts == 0
    assert error.to_dict()["reasons"] == error.reasons


async def test_a_half_open_host_gets_one_probe_while_the_others_serve_the_rest() -> None:
    clock = FakeClock()
    probe = asyncio.Event()
    mocks = Mocks(a=[500, probe], b=200)
    pool = mocks.pool(circuit_breaker_config=ONE_STRIKE, clock=clock)
    await pool.post(CHAT, json={})
    await clock.advance(10.0)
    calls = [asyncio.create_task(pool.post(CHAT, json={})) for _ in range(20)]
    await clock.advance(0.0)
    assert mocks.counts()["a"] == 2
    probe.set()
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    await pool.post(CHAT, json={})
    await pool.post(CHAT, json={})
    assert mocks.counts()["a"] > 2


async def test_a_host_that_asked_for_patience_is_left_alone_and_not_blamed() -> None:
    clock = FakeClock()
    mocks = Mocks(a=[busy(3600), 200], b=200)
    pool = mocks.pool(clock=clock)
    for _ in range(5):
        await pool.post(CHAT, json={})
    assert mocks.counts() == {"a": 1, "b": 5}
    host = pool.get_metrics()["hosts"]["a"]
    assert host["circuit_breaker"]["failure_count"] == 0
    assert host["throttled_for"] == pytest.approx(3600)
    await clock.advance(3600.0)
    await pool.post(CHAT, json={})
    await pool.post(CHAT, json={})
    assert mocks.counts()["a"] == 2


async def test_a_lone_busy_host_is_asked_again_when_it_said_and_never_later_than_allowed() -> None:
    clock = FakeClock()
    mocks = Mocks(a=[busy(2), 200])
    call = asyncio.create_task(mocks.pool(clock=clock).post(CHAT, json={}))
    await clock.advance(1.9)
    assert len(mocks.calls) == 1
    await clock.advance(0.2)
    assert (await call).status_code == 200

    mocks = Mocks(a=[busy(3600), 200])
    pool = mocks.pool()
    assert (await pool.post(CHAT, json={})).status_code == 429
    assert len(mocks.calls) == 1
    # Another call knows of no better host, so it asks.
    assert (await pool.post(CHAT, json={})).status_code == 200


async def test_our_own_full_pool_blames_no_host_and_is_not_retried() -> None:
    mocks = Mocks(a=httpx.PoolTimeout("full"), b=200)
    pool = mocks.pool(circuit_breaker_config=ONE_STRIKE)
    with pytest.raises(PoolTimeoutError):
        await pool.post(CHAT, json={})
    assert pool.get_status()["available_hosts"] == ["a", "b"]


async def test_one_deadline_is_over_all_attempts_and_waits() -> None:
    clock = FakeClock()
    mocks = Mocks(a=503, b=asyncio.Event())
    pool = mocks.pool(clock=clock, timeout_config=TimeoutConfig(total=5.0))
    call = asyncio.create_task(pool.post(CHAT, json={}))
    await clock.advance(5.1)
    with pytest.raises(DeadlineExceededError) as caught:
        await call
    assert caught.value.attempts == 2
    assert {host["in_flight"] for host in pool.get_metrics()["hosts"].values()} == {0}


async def test_a_body_that_can_be_read_only_once_is_sent_only_once() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"{}"

    mocks = Mocks(a=503, b=200)
    assert (await mocks.pool().post(CHAT, content=body())).status_code == 503
    assert mocks.calls == ["a"]


async def test_a_cancelled_call_blames_nobody_and_leaves_nothing_in_flight() -> None:
    mocks = Mocks(a=asyncio.Event(), b=asyncio.Event())
    pool = mocks.pool(circuit_breaker_config=ONE_STRIKE)
    calls = [asyncio.create_task(pool.post(CHAT, json={})) for _ in range(10)]
    await mocks.until_called(10)
    assert sum(host["in_flight"] for host in pool.get_metrics()["hosts"].values()) == 10
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    metrics = pool.get_metrics()
    assert {host["in_flight"] for host in metrics["hosts"].values()} == {0}
    assert {host["request_count"] for host in metrics["hosts"].values()} == {0}
    assert metrics["totals"]["cancelled_count"] == 10
    assert pool.get_status()["available_hosts"] == ["a", "b"]
