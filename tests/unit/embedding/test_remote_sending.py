import asyncio
import itertools
from collections.abc import Callable
from typing import cast

import httpx
import pytest
from remote_server import AS_IT_IS, Body, Remote, failing, good, same

from services.embedding import TextRejectedError
from services.embedding.backends.protocol import CANARY, Prepared
from services.embedding.errors import RequestTooLargeError
from shared.infrastructure.resilience import CircuitOpenError


def rejecting(is_bad: Callable[[str], bool], status: int = 400) -> Callable[[Body], httpx.Response]:
    def picky(body: Body) -> httpx.Response:
        bad = any(is_bad(text) for text in body["input"])
        return httpx.Response(status, text="too long") if bad else good(body)

    return picky


@pytest.mark.parametrize("bad", [{3}, {0, 7}, set(range(8)), set(range(1, 8))], ids=str)
async def test_only_the_texts_that_are_rejected_fail(bad: set[int]) -> None:
    texts = [str(number) for number in range(8)]
    async with Remote(rejecting(lambda text: text in {str(number) for number in bad})) as remote:
        outcomes = await remote.ask(*texts)
        breaker = remote.backend.snapshot()["circuit_breaker"]
    for number, outcome in enumerate(outcomes):
        is_rejected = isinstance(outcome, TextRejectedError)
        assert is_rejected if number in bad else same([outcome], [str(number)])
    assert breaker["state"] == "closed"


async def test_one_bad_text_costs_two_requests_for_each_halving() -> None:
    async with Remote(rejecting("bad".__eq__)) as remote:
        await remote.ask("bad", *map(str, range(255)))
        assert len(remote.batches) == 1 + 2 * 8


async def test_a_server_that_rejects_even_the_harmless_is_not_asked_about_each_text() -> None:
    async with Remote() as remote:
        remote.handler = failing(400, "no credit")
        outcomes = await remote.ask(*map(str, range(256)))
        assert {type(outcome) for outcome in outcomes} == {TextRejectedError}
        assert len(remote.batches) == 7
        assert remote.bodies[-1]["input"] == [CANARY]


async def test_a_request_that_is_too_large_teaches_the_size_that_fits() -> None:
    def small(body: Body) -> httpx.Response:
        size = sum(map(len, body["input"]))
        return httpx.Response(413) if size > 100 else good(body)

    texts = [f"{number:010d}" for number in range(32)]
    async with Remote(small) as remote:
        assert same(await remote.ask(*texts), texts)
        before = len(remote.batches)
        assert same(await remote.ask(*texts), texts)
        again = remote.batches[before:]
        assert [len(batch) for batch in again] == [8] * 4
        (outcome,) = await remote.ask("x" * 200)
        assert isinstance(outcome, RequestTooLargeError)
        assert same(await remote.ask(*texts[:8]), texts[:8])


async def test_a_late_request_is_sent_again_and_the_first_answer_counts() -> None:
    async with Remote(remote_hedging=1.0) as remote:
        await _make_p95_known(remote)
        stuck = asyncio.Event()
        calls = itertools.count()

        async def late_once(body: Body) -> httpx.Response:
            if next(calls) == 0:
                await stuck.wait()
            return good(body)

        remote.handler = late_once
        assert same(await remote.ask("a"), ["a"])
        assert remote.backend.snapshot()["hedge"]["won_count"] == 1


@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (0.05, 8), (0.5, 35)])
async def test_hedges_keep_to_their_share_of_the_requests(share: float, most: int) -> None:
    async with Remote(remote_hedging=share) as remote:
        await _make_p95_known(remote)

        async def late(body: Body) -> httpx.Response:
            await remote.clock.sleep(3.0)
            return good(body)

        remote.handler = late
        before = len(remote.requests)
        for number in range(30):
            assert same(await remote.ask(str(number)), [str(number)])
        hedges = len(remote.requests) - before - 30
        assert hedges <= most
        assert (hedges > 0) is (share > 0)


async def _make_p95_known(remote: Remote) -> None:
    for number in range(25):
        await remote.ask(str(number))


async def test_a_server_that_goes_on_failing_is_left_alone() -> None:
    async with Remote(failure_threshold=3) as remote:
        remote.handler = failing(500)
        for _ in range(3):
            await remote.ask("a")
        assert len(remote.requests) == 1 + 3
        (outcome,) = await remote.ask("a")
        assert isinstance(outcome, CircuitOpenError)
        assert remote.backend.snapshot()["circuit_breaker"]["state"] == "open"


async def test_nonsense_counts_as_a_failure_of_the_server() -> None:
    async with Remote(failure_threshold=3) as remote:
        remote.handler = lambda _: httpx.Response(200, html="<p>hello")
        await remote.ask("a")
        assert remote.backend.snapshot()["circuit_breaker"]["state"] == "open"


async def test_retries_of_all_calls_together_are_bounded() -> None:
    async with Remote(failure_threshold=1000, remote_hedging=0.0) as remote:
        remote.handler = failing(500)
        prepared = await remote.backend.prepare([str(number) for number in range(60)], AS_IT_IS)
        calls = [remote.backend.embed([cast("Prepared", item)]) for item in prepared]
        await remote.passing(asyncio.gather(*calls))
        # Three for each would be 180; a full budget pays for ten, and time for one a second.
        assert len(remote.requests) - 1 - 60 <= 20


async def test_requests_keep_to_the_contracts_rate() -> None:
    async with Remote(requests_per_second=5, burst_size=10) as remote:
        began = remote.clock.now()
        for number in range(20):
            await remote.ask(str(number))
        assert remote.clock.now() - began >= (20 - 10) / 5
        assert remote.backend.snapshot()["rate_limiter"]["granted"] == 21
        assert remote.backend.facts.concurrency == 10
