"""Hedging of HTTP exchanges: whose body is read, and whose is closed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest

from shared.infrastructure.http import ResilientTransport
from shared.infrastructure.resilience import (
    AttemptTimeoutLayer,
    HedgeConfig,
    HedgeLayer,
    RetryBudget,
    RetryBudgetConfig,
)
from shared.infrastructure.testing import FakeClock


class Body(httpx.AsyncByteStream):
    """A body that begins at once and goes on after a while, and again."""

    def __init__(self, name: str, clock: FakeClock) -> None:
        self.name = name
        self.clock = clock
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.name.encode()
        for _ in range(2):
            await self.clock.sleep(5.0)
            assert not self.is_closed
            yield self.name.encode()

    async def aclose(self) -> None:
        self.is_closed = True


class Upstream(httpx.AsyncBaseTransport):
    """Answers request n after its seconds, whether the caller still waits or not."""

    def __init__(self, clock: FakeClock, *plan: tuple[float, int]) -> None:
        self.clock = clock
        self.plan = plan
        self.sent = 0
        self.bodies: list[Body] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        number = self.sent
        self.sent += 1
        seconds, status = self.plan[min(number, len(self.plan) - 1)]
        with contextlib.suppress(asyncio.CancelledError):  # the answer was on its way already
            await self.clock.sleep(seconds)
        body = Body("ab"[number], self.clock)
        self.bodies.append(body)
        return httpx.Response(status, stream=body, headers={"Retry-After": "60"})


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def fetch(upstream: Upstream, method: str = "GET", **options: object) -> tuple[int, str]:
    clock = upstream.clock
    hedge = HedgeLayer(HedgeConfig(delay=1.0), clock=clock, **options)  # type: ignore[arg-type]
    limit = AttemptTimeoutLayer(3.0, clock=clock)
    transport = ResilientTransport(upstream, hedge, limit)

    async def read() -> tuple[int, str]:
        async with (
            httpx.AsyncClient(transport=transport) as client,
            client.stream(method, "http://a/") as response,
        ):
            return response.status_code, (await response.aread()).decode()

    task = asyncio.ensure_future(read())
    await clock.advance(60.0)
    assert all(body.is_closed for body in upstream.bodies)
    return await task


async def test_the_winner_keeps_its_body_long_after_the_race_and_the_loser_is_closed(
    clock: FakeClock,
) -> None:
    upstream = Upstream(clock, (2.5, 200), (0.5, 200))
    assert await fetch(upstream) == (200, "bbb")
    assert [body.name for body in upstream.bodies] == ["b", "a"]


async def test_a_failed_answer_that_is_not_returned_is_closed_before_the_other_is_read(
    clock: FakeClock,
) -> None:
    upstream = Upstream(clock, (1.5, 503), (1.5, 200))
    assert await fetch(upstream) == (200, "bbb")


async def test_a_post_without_a_key_is_sent_once(clock: FakeClock) -> None:
    upstream = Upstream(clock, (2.0, 200))
    assert await fetch(upstream, "POST") == (200, "aaa")
    assert upstream.sent == 1


async def test_a_429_is_the_outcome_and_stops_hedging_for_as_long_as_it_says(
    clock: FakeClock,
) -> None:
    hedge = HedgeLayer(HedgeConfig(delay=1.0), clock=clock)
    upstream = Upstream(clock, (0.5, 429), (2.0, 200))
    async with httpx.AsyncClient(transport=ResilientTransport(upstream, hedge)) as client:
        for status in (429, 200):
            call = asyncio.ensure_future(client.get("http://a/"))
            await clock.advance(20.0)
            assert (await call).status_code == status
    assert upstream.sent == 2
    assert hedge.snapshot()["skipped_count"] == 1


async def test_hedges_and_retries_draw_from_the_same_budget(clock: FakeClock) -> None:
    config = RetryBudgetConfig(capacity=10, min_retries_per_second=0, success_refund=0)
    budget = RetryBudget(config, clock=clock)
    assert budget.try_acquire()  # by a retry
    upstream = Upstream(clock, (2.0, 200))
    assert await fetch(upstream, budget=budget) == (200, "aaa")
    assert upstream.sent == 1
