"""What may have effects beyond an answer: it is sent again only if it had none for certain."""

from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing.call import CALL, Call
from shared.infrastructure.balancing.config import FallbackConfig
from shared.infrastructure.balancing.errors import ServerError
from shared.infrastructure.balancing.facts import facts_of
from shared.infrastructure.balancing.fallback import FallbackChain
from shared.infrastructure.balancing.hedging import PoolHedge
from shared.infrastructure.balancing.semantics import POOL, WireSemantics, is_hedgeable
from shared.infrastructure.http import (
    ConnectFailedError,
    ReadFailedError,
    ReadTimeoutError,
    UnprocessedError,
    UpstreamError,
)
from shared.infrastructure.resilience import AttemptTimeoutError, HedgeConfig
from tests.unit.balancing.scripted_hosts import Fleet, Run

CHAT, RESPONSES, BATCHES = "/v1/chat/completions", "/v1/responses", "/v1/batches"
UNSENT: list[Any] = [ConnectFailedError("refused"), UnprocessedError("goaway")]
TURNED_AWAY: list[Any] = [401, 403, 404, 429]
UNCLEAR: list[Any] = [500, 502, 503, 504]
LOST: list[Any] = [ReadFailedError("reset"), ReadTimeoutError("silence"), AttemptTimeoutError("s")]
KEY = {"Idempotency-Key": "k"}
STORED: list[dict[str, Any]] = [{}, {"store": True}, {"store": None}, {"background": True}]


def asked(
    path: str,
    body: dict[str, Any] | None = None,
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> httpx.Request:
    payload = {"model": "m", **(body or {})}
    content: dict[str, Any] = {} if method == "GET" else {"json": payload}
    facts = facts_of(path, payload if content else b"")
    extensions = {CALL: Call(facts, 4, began=1000.0)}
    url = f"http://pool{path}"
    return httpx.Request(method, url, headers=headers, extensions=extensions, **content)


async def hosts_asked(failure: Any, request: httpx.Request, **options: Any) -> list[str]:
    run = await Run(Fleet(a=failure, b=200), request=request, **options).done()
    return run.fleet.hosts


@pytest.mark.parametrize("failure", [*UNSENT, *TURNED_AWAY], ids=repr)
async def test_what_had_no_effect_goes_to_another_host(failure: Any) -> None:
    for request in (asked(BATCHES), asked(RESPONSES)):
        assert await hosts_asked(failure, request) == ["a", "b"]


@pytest.mark.parametrize("failure", [*UNCLEAR, *LOST], ids=repr)
async def test_what_may_have_had_an_effect_is_not_sent_again(failure: Any) -> None:
    assert await hosts_asked(failure, asked(BATCHES)) == ["a"]


@pytest.mark.parametrize("failure", [*UNCLEAR, *LOST], ids=repr)
async def test_what_has_none_or_says_that_it_is_the_same_goes_on(failure: Any) -> None:
    for request in (
        asked(CHAT),
        asked("/v1/files", method="GET"),
        asked(BATCHES, headers=KEY),
        asked(RESPONSES, {"store": False}),
    ):
        assert await hosts_asked(failure, request) == ["a", "b"]


@pytest.mark.parametrize("body", STORED)
async def test_an_answer_that_is_stored_is_asked_for_again_only_after_an_error(
    body: dict[str, Any],
) -> None:
    for failure in UNCLEAR:
        assert await hosts_asked(failure, asked(RESPONSES, body)) == ["a", "b"]
    for failure in LOST:
        assert await hosts_asked(failure, asked(RESPONSES, body)) == ["a"]
    assert POOL.repeatable(asked(RESPONSES, body), ServerError(500, "of another attempt"))


@pytest.mark.parametrize(("failure", "models"), [(500, 1), (ReadFailedError("reset"), 1), (401, 2)])
async def test_another_model_is_no_way_around_that(failure: Any, models: int) -> None:
    chain = FallbackChain(FallbackConfig(models={"m": ["x"]}))
    fleet = Fleet(a=failure)
    await Run(fleet, request=asked(BATCHES), layers=[chain], retry=None).done()
    assert len(fleet.hosts) == models


async def test_only_what_has_no_effect_is_hedged() -> None:
    hedged = [asked(CHAT), asked("/v1/x", method="GET"), asked(RESPONSES, {"store": False})]
    once = [
        *(asked(BATCHES), asked("/v1/files"), asked(BATCHES, headers=KEY)),
        *(asked(RESPONSES, body) for body in STORED),
        asked(CHAT, {"store": True}),
        asked("/v1/files/f", method="DELETE"),
    ]
    for request in (*hedged, *once):
        fleet = Fleet(a=(3.0, 200), b=200)
        hedge = PoolHedge(HedgeConfig(delay=1.0), clock=fleet.clock)
        assert is_hedgeable(request) is (request in hedged)
        await Run(fleet, request=request, below=[hedge]).done()
        assert fleet.hosts == (["a", "b"] if request in hedged else ["a"])


@pytest.mark.parametrize(
    ("request_", "stale"), [(asked(CHAT), True), (asked(RESPONSES), False), (asked(BATCHES), False)]
)
def test_a_connection_that_was_closed_meanwhile_may_have_had_the_request(
    request_: httpx.Request, stale: bool
) -> None:
    semantics, closed = WireSemantics(), UpstreamError("closed meanwhile")
    assert semantics.repeatable(request_, closed) is stale
    assert semantics.repeatable(request_, UnprocessedError("goaway"))
    check = httpx.Request("GET", "http://pool/health")  # which belongs to no call
    assert semantics.repeatable(check, closed)
