import random
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import httpx
import pytest

from shared.infrastructure.balancing import (
    BalancingStrategy,
    DistributedLLMClient,
    Host,
    LLMHost,
    LoadBalancingStrategy,
)
from shared.infrastructure.balancing.hosts import HostPolicy
from shared.infrastructure.balancing.strategies import strategy_of
from shared.infrastructure.http import TimeoutConfig
from shared.infrastructure.resilience import MONOTONIC, ConfigurationError, Listeners
from tests.scripted_host import completion

POLICY = HostPolicy(TimeoutConfig(), None, None, None, None)


def host(name: str, weight: float = 1.0, load: float = 0.0) -> Host:
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    config = LLMHost(name, f"http://{name}", weight)
    made = Host(config, POLICY, transport, clock=MONOTONIC, listeners=Listeners())
    made.load = load
    return made


def strategy(kind: LoadBalancingStrategy) -> BalancingStrategy:
    return strategy_of(kind, random.Random(5))


def picks(chosen: BalancingStrategy, hosts: Sequence[Host], count: int) -> list[str]:
    return [chosen.pick(hosts).name for _ in range(count)]


def test_round_robin_spreads_the_turns_of_a_heavy_host() -> None:
    hosts = [host("a", 5), host("b", 1), host("c", 1)]
    turns = picks(strategy(LoadBalancingStrategy.ROUND_ROBIN), hosts, 14)
    assert "".join(turns) == "aabacaa" * 2


def test_round_robin_of_equal_hosts_takes_them_in_turn() -> None:
    turns = picks(strategy(LoadBalancingStrategy.ROUND_ROBIN), [host("a"), host("b")], 6)
    assert "".join(turns) == "ababab"


def test_a_host_that_was_away_from_round_robin_is_not_flooded_when_it_is_back() -> None:
    chosen = strategy(LoadBalancingStrategy.ROUND_ROBIN)
    hosts = [host("a"), host("b"), host("c")]
    picks(chosen, hosts[:2], 100)
    runs = [len(list(run)) for _, run in groupby(picks(chosen, hosts, 30))]
    assert max(runs) <= 2


def test_weighted_random_follows_the_weights_and_random_does_not() -> None:
    hosts = [host("a", 3), host("b", 1)]
    weighted = Counter(picks(strategy(LoadBalancingStrategy.WEIGHTED_RANDOM), tuple(hosts), 4000))
    assert 0.72 < weighted["a"] / 4000 < 0.78
    even = Counter(picks(strategy(LoadBalancingStrategy.RANDOM), hosts, 4000))
    assert 0.46 < even["a"] / 4000 < 0.54


def test_weighted_random_forgets_the_weights_of_the_candidates_before() -> None:
    chosen = strategy(LoadBalancingStrategy.WEIGHTED_RANDOM)
    a, b = host("a", 100), host("b", 1)
    assert set(picks(chosen, (a, b), 50)) == {"a"}
    assert set(picks(chosen, (b,), 50)) == {"b"}


def test_least_loaded_minds_the_weight_and_breaks_ties_evenly() -> None:
    chosen = strategy(LoadBalancingStrategy.LEAST_LOADED)
    hosts = [host("a", load=2.0), host("b", load=1.0), host("c", load=1.0)]
    counts = Counter(picks(chosen, hosts, 2000))
    assert counts["a"] == 0
    assert 0.45 < counts["b"] / 2000 < 0.55


class Last:
    def pick(self, candidates: Sequence[Host], /) -> Host:
        return candidates[-1]


class Nobody:
    def pick(self, candidates: Sequence[Host], /) -> Any:
        return None


async def test_a_custom_strategy_goes_wherever_the_enum_does() -> None:
    seen: list[str] = []

    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.host)
        return httpx.Response(200, json=completion("hi"))

    hosts = [LLMHost("a", "http://a"), LLMHost("b", "http://b")]
    client = DistributedLLMClient(hosts, Last(), transport=httpx.MockTransport(reply))
    await client.post("/v1/chat/completions", json={})
    assert seen == ["b"]
    client = DistributedLLMClient(hosts, Nobody(), transport=httpx.MockTransport(reply))
    with pytest.raises(ConfigurationError, match=r"Nobody\.pick returned None"):
        await client.post("/v1/chat/completions", json={})
    with pytest.raises(ConfigurationError, match="is no strategy"):
        DistributedLLMClient(hosts, "best")  # type: ignore[arg-type]
