"""The error table, row by row: who is asked after a failure, and what is held against whom."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import pytest

from shared.infrastructure.balancing import errors
from shared.infrastructure.balancing.config import (
    AnswerTimeoutConfig,
    BalanceConfig,
    FallbackConfig,
)
from shared.infrastructure.balancing.hosts import LLMHost
from shared.infrastructure.http import (
    ConnectionPoolConfig,
    PoolTimeoutError,
    TimeoutConfig,
    UpstreamError,
    WireTransport,
)
from shared.infrastructure.resilience import DeadlineExceededError, RetryConfig, ServiceError
from tests.wall.llm_cell import under_way
from tests.wall.llm_faults import (
    SERVER_ERROR,
    breaks_off,
    by_form,
    other_body,
    reset,
    silence,
    status,
)
from tests.wall.llm_hosts import CHAT, Fault, Pace, Site, Turn, erroneous, heading, serving, well
from tests.wall.llm_ways import our_pool

SOON = Pace(limit=0.3, deadline=6.0)
SHORT = BalanceConfig(throttle=0.05, max_throttle=0.05)
OPTIONS: Any = {
    "retry_config": RetryConfig(base_delay=0.01, max_retries=3),
    "balance_config": SHORT,
}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: What goes wrong.
        fault: How.
        error: What comes of it if nobody else can help.
        asked: Times the only host there is gets the request, of four that it might.
        elsewhere: Whether another host is asked.
        falls_back: Whether another model is asked.
        state: What the host is in after five such calls.
    """

    name: str
    fault: Fault
    error: type[Exception]
    asked: int = 4
    elsewhere: bool = True
    falls_back: bool = True
    state: str = "open"


def broken(code: int) -> Row:
    return Row(str(code), status(code), errors.ServerError)


def refused(code: int, error: type[Exception]) -> Row:
    fault = status(code, erroneous("no_such_thing"))
    return Row(str(code), fault, error, 1, elsewhere=False, falls_back=False, state="ready")


def misconfigured(code: int, error: type[Exception], name: str = "invalid_api_key") -> Row:
    return Row(f"{code} {name}", status(code, erroneous(name)), error, 1, state="misconfigured")


TOO_MANY = erroneous("rate_limit_exceeded", "rate_limit_error")
ROWS = [
    Row("reset", reset, UpstreamError),
    *(broken(code) for code in (500, 502, 504)),
    Row("503", status(503), errors.OverloadedError),
    Row("529", status(529), errors.OverloadedError),
    Row("overloaded", status(500, erroneous("overloaded_error")), errors.OverloadedError),
    Row(
        "429 that says when",
        status(429, TOO_MANY, retry_after_ms="50"),
        errors.RateLimitedError,
        3,
        state="throttled",
    ),
    Row("429", status(429, TOO_MANY), errors.RateLimitedError, 3, state="throttled"),
    Row(
        "429 for an hour",
        status(429, TOO_MANY, retry_after="3600"),
        errors.RateLimitedError,
        1,
        state="throttled",
    ),
    Row("silence", silence, errors.FirstTokenTimeoutError, 1),
    misconfigured(401, errors.AuthenticationError),
    misconfigured(402, errors.PaymentRequiredError),
    misconfigured(403, errors.PermissionDeniedError),
    misconfigured(429, errors.InsufficientQuotaError, "insufficient_quota"),
    Row(
        "404",
        status(404, erroneous("model_not_found")),
        errors.ModelNotFoundError,
        1,
        state="ready",  # it may well have other models
    ),
    Row(
        "400 too long",
        status(400, erroneous("context_length_exceeded")),
        errors.ContextWindowError,
        1,
        elsewhere=False,
        falls_back=False,
        state="ready",
    ),
    Row(
        "400 policy",
        status(400, erroneous("content_filter")),
        errors.ContentFilterError,
        1,
        elsewhere=False,
        falls_back=False,
        state="ready",
    ),
    refused(400, errors.BadRequestError),
    refused(409, errors.ConflictError),
    refused(422, errors.UnprocessableError),
    Row("no answer", other_body(b"<html>"), errors.InvalidResponseError),
    Row("error in 200", status(200, SERVER_ERROR), errors.ServerError),
]
each_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


def site_of(row: Row, count: int) -> Site:
    return Site(count, row.fault, "primary" if count > 1 else "all", pace=SOON)


@each_row
async def test_how_often_the_only_host_is_asked(row: Row) -> None:
    async with serving(site_of(row, 1)) as site, our_pool(site.urls, SOON, **OPTIONS) as pool:
        with pytest.raises(ServiceError) as caught:
            await pool.chat(heading("call"))
        assert isinstance(caught.value, row.error), repr(caught.value)
        assert len(site.all_turns()) == row.asked
        assert caught.value.attempts == row.asked
        assert not await under_way(site, pool)


@each_row
@pytest.mark.parametrize("count", [2, 3])
async def test_whether_another_host_is_asked(row: Row, count: int) -> None:
    async with serving(site_of(row, count)) as site, our_pool(site.urls, SOON, **OPTIONS) as pool:
        if row.elsewhere:
            answer = await pool.chat(heading("call"))
            first, second = site.all_turns()
            assert answer.choices[0].message.content == second.text
            assert first.host != second.host
        else:
            with pytest.raises(row.error):
                await pool.chat(heading("call"))
            assert len(site.all_turns()) == 1
        assert not await under_way(site, pool)


def only_for(model: str, fault: Fault) -> Fault:
    async def step(turn: Turn) -> None:
        await (fault if turn.exchange.payload["model"] == model else well)(turn)

    return step


@each_row
async def test_whether_another_model_is_asked(row: Row) -> None:
    site = Site(3, only_for("m", row.fault), "all", pace=SOON)
    options = {**OPTIONS, "fallback_config": FallbackConfig(models={"m": ["n"]})}
    async with serving(site), our_pool(site.urls[:2], SOON, **options) as pool:
        # It has a key of its own: one that is refused is so for every model.
        pool.add_host(LLMHost("of the other model", site.urls[2], models=["n"]))
        if row.falls_back:
            answer = await pool.chat(heading("call"))
            assert answer.choices[0].message.content == site.all_turns()[-1].text
        else:
            with pytest.raises(row.error):
                await pool.chat(heading("call"))
        asked = [turn.exchange.payload["model"] for turn in site.all_turns()]
        assert ("n" in asked) is row.falls_back
        assert not await under_way(site, pool)


@pytest.mark.parametrize("cause", ["context_window", "content_filter"])
async def test_what_no_host_can_better_falls_back_where_that_is_asked_for(cause: str) -> None:
    names = {"context_window": "context_length_exceeded", "content_filter": "content_filter"}
    fault = only_for("m", status(400, erroneous(names[cause])))
    site = Site(2, fault, "all", pace=SOON)
    config = FallbackConfig.model_validate({cause: {"m": ["n"]}})
    async with serving(site), our_pool(site.urls, SOON, fallback_config=config) as pool:
        answer = await pool.chat(heading("call"))
        first, second = site.all_turns()
        assert answer.choices[0].message.content == second.text
        assert [t.exchange.payload["model"] for t in (first, second)] == ["m", "n"]


@each_row
async def test_what_is_held_against_a_host(row: Row) -> None:
    options = {**OPTIONS, "retry_config": None, "balance_config": BalanceConfig(throttle=30.0)}
    async with serving(site_of(row, 1)) as site, our_pool(site.urls, SOON, **options) as pool:
        for number in range(5):
            with contextlib.suppress(ServiceError):
                await pool.chat(heading(f"call {number}"))
            if row.state == "throttled":
                break  # the next would wait for as long as it was told to
        host = pool.get_metrics()["hosts"]["host-0"]
        assert host["state"] == row.state
        assert (host["circuit_breaker"]["state"] == "open") is (row.state == "open")


@pytest.mark.parametrize("ending", ["cut", "whole", "stall"])
async def test_a_stream_that_breaks_off_is_held_against_its_host(ending: Any) -> None:
    fault = by_form(stream=breaks_off(ending), plain=well)
    site = Site(1, fault, "all", pace=SOON)
    async with serving(site), our_pool(site.urls, SOON, **OPTIONS) as pool:
        for number in range(5):
            with contextlib.suppress(ServiceError):
                async with pool.stream(heading(f"call {number}")) as chunks:
                    async for _ in chunks:
                        pass
        assert pool.get_metrics()["hosts"]["host-0"]["circuit_breaker"]["state"] == "open"


ONE = ConnectionPoolConfig(max_connections=1)


@pytest.mark.parametrize("is_ours", [True, False], ids=["our pool", "a transport's"])
async def test_a_full_connection_pool_is_nobody_elses_fault(is_ours: bool) -> None:
    site = Site(1, silence, "all", pace=SOON)
    options: Any = {
        "balance_config": BalanceConfig(queue_timeout=0.02),
        "timeout_config": TimeoutConfig(pool=0.02, read=5.0),
        "answer_timeouts": AnswerTimeoutConfig(first_token=5.0),
        **({"pool_config": ONE} if is_ours else {"transport": WireTransport(ONE)}),
    }
    refusal = errors.NoHostAvailableError if is_ours else PoolTimeoutError
    async with serving(site), our_pool(site.urls, SOON, **{**OPTIONS, **options}) as pool:
        first = asyncio.ensure_future(pool.post(CHAT, json=heading("first")))
        await site.hosts[0].until(lambda: bool(site.all_turns()))
        for number in range(12):
            with pytest.raises(refusal):
                await pool.post(CHAT, json=heading(f"call {number}"))
        assert not first.done()
        assert len(site.all_turns()) == 1
        host = pool.get_metrics()["hosts"]["host-0"]
        assert (host["state"], host["circuit_breaker"]["window_failures"]) == ("ready", 0)
        first.cancel()
        await asyncio.wait([first])
        assert not await under_way(site, pool)


async def test_a_cancelled_caller_is_no_fault_and_no_reason_to_go_on() -> None:
    site = Site(2, silence, "all", pace=SOON)
    async with serving(site), our_pool(site.urls, SOON.slowed(20), **OPTIONS) as pool:
        for number in range(8):
            call = asyncio.ensure_future(pool.chat(heading(f"call {number}")))
            await site.hosts[0].until(lambda: len(site.all_turns()) == number + 1)  # noqa: B023
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
        assert {len(turns) for turns in site.turns.values()} == {1}
        assert states(pool) == {"ready"}
        assert not await under_way(site, pool)


async def test_a_deadline_of_ours_ends_the_call_and_is_no_fault() -> None:
    site = Site(2, silence, "all", pace=SOON)
    options = {"timeout_config": TimeoutConfig(total=0.1, read=30.0)}
    async with serving(site), our_pool(site.urls, SOON.slowed(20), **{**OPTIONS, **options}) as p:
        for number in range(8):
            with pytest.raises(DeadlineExceededError):
                await p.chat(heading(f"call {number}"))
        assert {len(turns) for turns in site.turns.values()} == {1}
        assert states(p) == {"ready"}
        assert not await under_way(site, p)


def states(pool: Any) -> set[str]:
    return {host["state"] for host in pool.get_metrics()["hosts"].values()}
