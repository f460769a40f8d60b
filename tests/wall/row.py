"""One row of the wall: what a server does, and all that a client may and must not do about it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import pytest

from shared.infrastructure.http import (
    ConnectionPoolConfig,
    ReadTimeoutError,
    TimeoutConfig,
    UpstreamError,
)
from shared.infrastructure.resilience import (
    AttemptTimeoutError,
    DeadlineExceededError,
    RetryConfig,
    ServiceError,
    Verdict,
)
from tests.raw_server import RawServer
from tests.wall.flavours import FLAVOURS, NAMES, Flavour, busy, opened
from tests.wall.leaks import Census, gone_soon

Play = TypeVar("Play")
# A slot that is not given back is one too many.
ONE_SLOT = ConnectionPoolConfig(max_connections=1)
ONCE_MORE = RetryConfig(max_retries=1, base_delay=0.0)
PATIENT = {"connect": 5.0, "read": 5.0, "write": 5.0, "pool": 5.0, "total": 10.0}
# What a machine with two busy cores may add to a time limit.
NOISE = 2.0


@dataclass(frozen=True)
class Row(Generic[Play]):
    """What a server does, and what has to come of it.

    Attributes:
        name: What the server does, in words.
        play: Plays it, once for each request but the good ones.
        outcome: Class of the error, or status and body of the answer.
        seen: Times the server has seen the request: 2 if it was sent again.
        attempts: Attempts the error tells of; None if as many.
        failures: Attempts the breaker counted; None if every one, for an error that is one.
        cause: Class of what is behind the error; None if nothing is.
        method: Method of the request.
        body: Makes its body; None is none.
        streamed: Whether the answer is read piece by piece.
        limits: Time limits that are not those of a patient client.
        options: Other arguments of the client.
        after: Good requests sent before it on the same client.
        connections: Connections it takes, with that good request; None if any number will do.
    """

    name: str
    play: Play
    outcome: type[Exception] | tuple[int, bytes]
    seen: int = 2
    attempts: int | None = None
    failures: int | None = None
    cause: type[BaseException] | None = None
    method: str = "GET"
    body: Callable[[], bytes | AsyncIterable[bytes]] | None = None
    streamed: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    after: int = 0
    connections: int | None = None

    @property
    def time_limit(self) -> float:
        """Seconds it may take."""
        shortest = min(self.limits.values(), default=PATIENT["read"])
        return shortest * self.seen + NOISE


class Site(Protocol):
    """A server that misbehaves on every path but /good, and knows how often it was asked."""

    @property
    def server(self) -> RawServer: ...
    @property
    def asked(self) -> list[str]:
        """Paths of the requests so far."""
        ...


def on_every_flavour(rows: list[Row[Any]]) -> Callable[[Any], Any]:
    """Run a test for each row on each flavour."""

    def decorate(test: Any) -> Any:
        with_rows = pytest.mark.parametrize("row", rows, ids=[row.name for row in rows])
        return with_rows(pytest.mark.parametrize("flavour", FLAVOURS, ids=NAMES)(test))

    return decorate


async def meet(row: Row[Any], flavour: Flavour, site: AbstractAsyncContextManager[Site]) -> None:
    """Send the request of `row` and check everything about it."""
    limits = TimeoutConfig(**{**PATIENT, **row.limits})
    options = {
        "pool_config": ONE_SLOT,
        "retry_config": ONCE_MORE,
        "timeout_config": limits,
        **row.options,
    }
    async with site as there:
        census = Census()
        async with opened(flavour, there.server.url, **options) as client:
            for _ in range(row.after):
                assert (await client.get("/good")).text == "ok"
            before = time.monotonic()
            outcome = await _send(client, row)
            assert time.monotonic() - before < row.time_limit
            _check(row, outcome, flavour, there)
            _check_breaker(row, client)
            await gone_soon(lambda: busy(client))
            await _is_served(client)
            assert client.get_status()["in_flight"] == 0
            assert len(there.server.peers) == (row.connections or len(there.server.peers))
        await census.nothing_is_left(there.server)


async def _is_served(client: Any) -> None:
    """Make sure that a good request gets its answer, however little time the row allows."""
    for hurried in (True, True, True, True, False):
        try:
            answer = await client.get("/good")
        except (DeadlineExceededError, AttemptTimeoutError, ReadTimeoutError):
            if not hurried:
                raise
        else:
            assert (answer.status_code, answer.content) == (200, b"ok")
            return


async def _send(client: Any, row: Row[Any]) -> Any:
    content = None if row.body is None else row.body()
    request = client.build_request(row.method, "/bad", content=content)
    try:
        response = await client.send(request, stream=row.streamed)
        try:
            await response.aread()
        finally:
            await response.aclose()
    except ServiceError as error:
        return error
    return response


def _check(row: Row[Any], outcome: Any, flavour: Flavour, site: Site) -> None:
    assert site.asked.count("/bad") == row.seen
    if isinstance(row.outcome, tuple):
        assert not isinstance(outcome, Exception), repr(outcome)
        assert (outcome.status_code, outcome.content) == row.outcome
        return
    assert isinstance(outcome, ServiceError), outcome
    assert type(outcome).__name__ == row.outcome.__name__, repr(outcome)
    assert isinstance(outcome, row.outcome)
    if isinstance(outcome, UpstreamError):
        assert isinstance(outcome, flavour.library.RequestError)
        assert outcome.host == site.server.url.partition("//")[2]
        assert outcome.attempts == (row.attempts or row.seen)
        assert len(outcome.earlier) == outcome.attempts - 1
        assert "bad" in str(outcome)
        assert isinstance(outcome.__cause__, row.cause or type(None))


def _check_breaker(row: Row[Any], client: Any) -> None:
    failures = row.failures
    if failures is None:
        failures = row.seen if _is_failure(row.outcome) else 0
    status = client.get_status()
    assert status["circuit_breaker"]["window_failures"] == failures
    assert status["health"]["consecutive_failures"] == failures
    assert status["attempt_count"] == row.seen + row.after


def _is_failure(outcome: Any) -> bool:
    if isinstance(outcome, tuple):
        return bool(outcome[0] >= 500)
    if issubclass(outcome, UpstreamError):
        return outcome.verdict is Verdict.FAILED
    return issubclass(outcome, AttemptTimeoutError)
