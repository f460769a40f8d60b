"""A real Envoy as fault injector and peer: what it does to a request, and how it says goodbye."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.infrastructure.http import ConnectionPoolConfig, TimeoutConfig
from shared.infrastructure.resilience import (
    AttemptTimeoutError,
    CircuitBreakerConfig,
    RateLimitConfig,
)
from tests.envoy_server import EnvoyServer, serving_envoy
from tests.local_tls import authority
from tests.wall.answers import Version
from tests.wall.flavours import FLAVOURS, NAMES, Flavour, busy, opened
from tests.wall.leaks import gone_soon
from tests.wall.row import ONCE_MORE

ALIKE = pytest.mark.parametrize("flavour", FLAVOURS, ids=NAMES)
BOTH = pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
ABORT = {"x-envoy-fault-abort-request": "503"}
DELAY = {"x-envoy-fault-delay-request": "2000"}


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_envoy(1, authority(), tmp_path_factory.mktemp("envoy")) as (url, _):
        yield url


@BOTH
@ALIKE
async def test_faults_of_a_real_proxy(flavour: Flavour, version: Version, envoy: str) -> None:
    options: Any = {
        "http2": version == "HTTP/2",
        "timeout_config": TimeoutConfig(attempt=0.3, total=5.0),
        "retry_config": ONCE_MORE,
        "circuit_breaker_config": CircuitBreakerConfig(failure_threshold=50),
    }
    async with opened(flavour, envoy, **options) as http:
        answer = await http.get("/x")
        assert (answer.text, answer.http_version) == ("ok", version)
        assert (await http.get("/x", headers=ABORT)).status_code == 503
        assert http.get_status()["circuit_breaker"]["window_failures"] == 2
        with pytest.raises(AttemptTimeoutError):
            await http.get("/x", headers=DELAY)
        assert http.get_status()["circuit_breaker"]["window_failures"] == 4
        await gone_soon(lambda: busy(http))
        assert (await http.post("/x", content=b"order")).text == "ok"


@BOTH
@ALIKE
async def test_a_limit_of_a_real_proxy_stops_every_caller_for_as_long_as_it_says(
    flavour: Flavour, version: Version, envoy: str
) -> None:
    options: Any = {
        "http2": version == "HTTP/2",
        "rate_limit_config": RateLimitConfig(requests_per_second=1000, burst_size=10),
    }
    async with opened(flavour, envoy, **options) as http:
        statuses = [(await http.get("/limited")).status_code]
        while statuses[-1] == 200:
            statuses.append((await http.get("/limited")).status_code)
        assert statuses[-1] == 429
        began = time.monotonic()
        answers = await asyncio.gather(*(http.get("/limited") for _ in range(3)))
        assert {answer.status_code for answer in answers} == {200}
        assert time.monotonic() - began > 0.9
        assert http.get_status()["circuit_breaker"]["window_failures"] == 0


@BOTH
@ALIKE
async def test_a_drain_at_100_requests_a_second_costs_no_request(
    flavour: Flavour, version: Version, tmp_path: Path
) -> None:
    options: Any = {
        "http2": version == "HTTP/2",
        "idempotency_keys": False,
        "pool_config": ConnectionPoolConfig(max_connections=10, keepalive_expiry=60.0),
        "timeout_config": TimeoutConfig(connect=30.0, pool=30.0),
    }
    with serving_envoy(2, authority(), tmp_path) as (url, envoys):
        async with opened(flavour, url, **options) as http:

            async def call(turn: int, at: float) -> int:
                await asyncio.sleep(at - time.monotonic())
                answer = await (http.post("/") if turn % 2 else http.get("/"))
                return int(answer.status_code)

            began = time.monotonic()
            calls = [asyncio.ensure_future(call(turn, began + turn / 100)) for turn in range(200)]
            await asyncio.gather(*calls[:30])
            drained, other = sorted(envoys, key=in_use, reverse=True)
            assert in_use(drained), "nobody is there to be told"
            await asyncio.to_thread(drained.admin, "/drain_listeners?graceful")
            assert set(await asyncio.gather(*calls)) == {200}
            assert http.get_status()["error_count"] == 0
            assert in_use(other), "nobody went to the other"


def in_use(envoy: EnvoyServer) -> int:
    """Return the connections that an Envoy has."""
    told = envoy.admin("/stats?filter=^http.in.downstream_cx_active$", "GET")
    return int(told.rpartition(b": ")[2])
