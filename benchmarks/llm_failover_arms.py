"""Ways to three LLM hosts of which one may fail: ours, Envoy in front, and a retry by hand."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

import httpx

from examples.demo.processes import ServerProcess, serving
from shared.infrastructure.balancing.config import AnswerTimeoutConfig
from shared.infrastructure.balancing.distributed_llm import DistributedLLMClient
from shared.infrastructure.balancing.hosts import LLMHost
from shared.infrastructure.balancing.strategies import LoadBalancingStrategy
from shared.infrastructure.http import TimeoutConfig
from shared.infrastructure.resilience import HedgeConfig
from tests.envoy_server import binary

CHAT = "/v1/chat/completions"
PER_TRY, TOTAL = 1.0, 10.0
"""Seconds one attempt, and the whole call, may take, with every arm alike."""


class Lent(NamedTuple):
    """A client, ready to be used.

    Attributes:
        ask: Asks a question; returns the text of the answer, raises if there is none.
        attempts: Returns how many requests have gone to the hosts so far.
    """

    ask: Callable[[str], Awaitable[str]]
    attempts: Callable[[], int]


class StubHost(ServerProcess):
    """`llm_failover_host` in a process."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "/health")

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "benchmarks.llm_failover_host", str(self.port)]


def question(text: str) -> dict[str, Any]:
    return {"model": "stub", "messages": [{"role": "user", "content": text}]}


def text_of(answer: httpx.Response) -> str:
    text: str = answer.raise_for_status().json()["choices"][0]["message"]["content"]
    return text


Arm = Callable[[Sequence[str]], AbstractAsyncContextManager[Lent]]


@asynccontextmanager
async def by_hand(urls: Sequence[str]) -> AsyncIterator[Lent]:
    """Take turns, and try once more at the next host."""
    turns = itertools.count()
    sent = 0

    async def ask(text: str) -> str:
        nonlocal sent
        turn = next(turns)
        for number in (turn, turn + 1):
            sent += 1
            url = urls[number % len(urls)] + CHAT
            try:
                return text_of(await http.post(url, json=question(text)))
            except httpx.HTTPError as error:
                last = error
        raise last

    async with httpx.AsyncClient(timeout=PER_TRY) as http:
        yield Lent(ask, lambda: sent)


def ours(strategy: str, *, hedged: bool = False) -> Arm:
    @asynccontextmanager
    async def opened(urls: Sequence[str]) -> AsyncIterator[Lent]:
        hosts = [LLMHost(f"host-{number}", url) for number, url in enumerate(urls)]
        async with DistributedLLMClient(
            hosts,
            LoadBalancingStrategy[strategy],
            timeout_config=TimeoutConfig(read=PER_TRY, total=TOTAL),
            answer_timeouts=AnswerTimeoutConfig(first_token=PER_TRY),
            hedge_config=HedgeConfig() if hedged else None,
        ) as pool:

            async def ask(text: str) -> str:
                return text_of(await pool.post(CHAT, json=question(text)))

            def attempts() -> int:
                told = pool.get_metrics()["hosts"].values()
                return sum(host["request_count"] + host["cancelled_count"] for host in told)

            yield Lent(ask, attempts)

    return opened


class Envoy(ServerProcess):
    """Envoy as a proxy in front of the hosts; its own port is that of its administration."""

    _ids = itertools.count(7)

    def __init__(self, listen: int, urls: Sequence[str], policy: str) -> None:
        super().__init__("envoy", "/ready")
        self._config = _config(self.port, listen, urls, policy)

    def command(self) -> Sequence[str]:
        options = f"--concurrency 1 --base-id {next(self._ids) * 1000 + self.port % 1000}"
        quiet = ["--log-level", "error", "--config-yaml", json.dumps(self._config)]
        return [binary(), *options.split(), *quiet]


class _Held(ServerProcess):
    """A port for a listener that is not the process's first."""

    def command(self) -> Sequence[str]:
        raise NotImplementedError


def envoy(policy: str) -> Arm:
    @asynccontextmanager
    async def opened(urls: Sequence[str]) -> AsyncIterator[Lent]:
        held = _Held("listener of envoy", "/")
        proxy = Envoy(held.port, urls, policy)
        stats = f"{proxy.url}/stats?format=json&filter=cluster.hosts.upstream_rq_total$"

        async def ask(text: str) -> str:
            return text_of(await http.post(held.url + CHAT, json=question(text)))

        def attempts() -> int:
            # Asked before and after a window, never within it.
            return int(httpx.get(stats, timeout=5.0).json()["stats"][0]["value"])

        try:
            async with serving(proxy), httpx.AsyncClient(timeout=TOTAL) as http:
                await _until_up(held.url)
                yield Lent(ask, attempts)
        finally:
            held.close()

    return opened


async def _until_up(url: str) -> None:
    async with httpx.AsyncClient(timeout=1.0) as http:
        for _ in range(200):
            try:
                if (await http.get(f"{url}/health")).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.02)
    raise AssertionError("Envoy does not listen")


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _config(admin: int, listen: int, urls: Sequence[str], policy: str) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions"
    retries = {
        "retry_on": "5xx,reset,connect-failure,refused-stream,retriable-status-codes",
        "retriable_status_codes": [429],
        "num_retries": 3,
        "per_try_timeout": f"{PER_TRY}s",
        "host_selection_retry_max_attempts": 5,
        "retry_host_predicate": [
            {
                "name": "previous",
                "typed_config": {
                    "@type": f"{kind}.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
    }
    route = {"cluster": "hosts", "timeout": f"{TOTAL}s", "retry_policy": retries}
    manager = {
        "@type": f"{kind}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": route}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{kind}.filters.http.router.v3.Router"},
            }
        ],
    }
    endpoints = [{"endpoint": {"address": _address(int(url.rpartition(":")[2]))}} for url in urls]
    budget = {"budget_percent": {"value": 20.0}, "min_retry_concurrency": 3}
    cluster = {
        "name": "hosts",
        "type": "STATIC",
        "lb_policy": policy,
        "connect_timeout": f"{PER_TRY}s",
        "load_assignment": {
            "cluster_name": "hosts",
            "endpoints": [{"lb_endpoints": endpoints}],
        },
        "circuit_breakers": {"thresholds": [{"retry_budget": budget}]},
        "outlier_detection": {
            "consecutive_5xx": 5,
            "consecutive_gateway_failure": 5,
            "enforcing_consecutive_gateway_failure": 100,
            "interval": "1s",
            "base_ejection_time": "5s",
            "max_ejection_percent": 50,
        },
    }
    listener = {
        "name": "in",
        "address": _address(listen),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {
        "admin": {"address": _address(admin)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


BY_HAND, ENVOY, ENVOY_LEAST = "httpx, one retry", "Envoy", "Envoy, least request"
PEERS: dict[str, Arm] = {
    BY_HAND: by_hand,
    ENVOY: envoy("ROUND_ROBIN"),
    ENVOY_LEAST: envoy("LEAST_REQUEST"),
}
UNHEDGED: dict[str, Arm] = {
    f"ours, {strategy}": ours(strategy)
    for strategy in ("ROUND_ROBIN", "LEAST_LOADED", "P2C", "PEAK_EWMA")
}
HEDGED: dict[str, Arm] = {
    f"ours, {strategy}, hedged": ours(strategy, hedged=True)
    for strategy in ("ROUND_ROBIN", "P2C", "PEAK_EWMA")
}
ARMS = {**PEERS, **UNHEDGED, **HEDGED}
