"""Who gets how many calls: by weight, by chance, by load, by speed."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from shared.infrastructure.balancing.strategies import LoadBalancingStrategy, strategy_of
from shared.infrastructure.resilience import ConfigurationError
from tests.unit.balancing.strategy_hosts import FakeHost, at, calls, named, picks, pool, shares

WEIGHTS = (5.0, 3.0, 2.0)
EXPECTED = {"a": 0.5, "b": 0.3, "c": 0.2}


@pytest.mark.parametrize(("name", "tolerance"), [("round_robin", 1e-4), ("weighted_random", 0.02)])
def test_shares_follow_the_weights(name: str, tolerance: float) -> None:
    assert shares(picks(named(name), pool(*WEIGHTS), 10_000)) == pytest.approx(
        EXPECTED, abs=tolerance
    )


@pytest.mark.parametrize("name", ["least_loaded", "p2c", "peak_ewma"])
def test_shares_of_equally_fast_hosts_under_load_follow_the_weights(name: str) -> None:
    chance = random.Random(1)
    given = calls(
        named(name), pool(*WEIGHTS), 10_000, every=0.01, takes=lambda _: chance.uniform(0.9, 1.1)
    )
    assert shares(given) == pytest.approx(EXPECTED, abs=0.02)


@pytest.mark.parametrize("name", ["least_loaded", "p2c"])
def test_shares_of_idle_hosts_follow_the_weights(name: str) -> None:
    assert shares(picks(named(name), pool(*WEIGHTS), 10_000)) == pytest.approx(EXPECTED, abs=0.02)


def test_random_does_not_mind_the_weights() -> None:
    even = shares(picks(named("random"), pool(3, 1), 10_000))
    assert even == pytest.approx({"a": 0.5, "b": 0.5}, abs=0.02)


@pytest.mark.parametrize("name", ["weighted_random", "p2c", "least_loaded", "round_robin"])
def test_a_weight_that_has_grown_is_noticed(name: str) -> None:
    strategy, hosts = named(name), pool(1, 1)
    hosts[0].weight = 0.001
    for _ in range(100):
        strategy.pick(hosts, at(0.0))
    hosts[0].weight = 1.0
    later = Counter(strategy.pick(hosts, at(0.2)).name for _ in range(1_000))
    assert shares(later)["a"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", list(LoadBalancingStrategy))
def test_only_candidates_are_picked_whoever_they_were_before(name: str) -> None:
    strategy, hosts, chance = named(name), pool(5, 1, 3, 1, 2, 1), random.Random(2)
    for number in range(2_000):
        some = tuple(chance.sample(hosts, chance.randint(1, 6)))
        if number % 3 == 0:
            some = hosts
        context = at(number * 0.01, prompt="p" * chance.choice([0, 600, 3_000]))
        host = strategy.pick(some, context)
        assert host in some
        host.in_flight = chance.randint(0, 3)


def test_least_loaded_minds_the_weight_and_takes_equals_at_random() -> None:
    a, b, c = FakeHost("a", 1.0, 2), FakeHost("b", 2.0, 2), FakeHost("c", 1.0, 1)
    counts = shares(picks(named("least_loaded"), (a, b, c), 3_000))
    assert counts == pytest.approx({"b": 2 / 3, "c": 1 / 3}, abs=0.03)


def test_two_choices_never_take_the_most_loaded() -> None:
    hosts = pool(1, 1, 1)
    hosts[1].in_flight = 1
    assert set(picks(named("p2c"), hosts, 500)) == {"a", "c"}


SLOW_SHARES = {
    "round_robin": (0.33, 0.34),
    "random": (0.30, 0.37),
    "p2c": (0.0, 0.10),
    "least_loaded": (0.0, 0.04),
    "peak_ewma": (0.0, 0.04),
}


@pytest.mark.parametrize("name", SLOW_SHARES)
def test_a_host_twenty_times_slower_gets_as_few_calls_as_the_strategy_can_tell(name: str) -> None:
    given = calls(
        named(name),
        pool(1, 1, 1),
        6_000,
        every=0.005,
        takes=lambda host: 1.0 if host.name == "b" else 0.05,
    )
    least, most = SLOW_SHARES[name]
    assert least <= shares(given).get("b", 0.0) <= most
    assert given["b"] > 0  # or nobody would see that it has become fast


def test_peak_ewma_takes_the_slow_host_back_once_it_is_fast() -> None:
    hosts = pool(1, 1, 1)
    strategy = named("peak_ewma")
    calls(strategy, hosts, 2_000, every=0.005, takes=lambda host: 1.0 + 19 * (host.name == "b"))
    for host in hosts:
        host.in_flight = 0
    later = calls(strategy, hosts, 20_000, every=0.005, takes=lambda _: 1.0)
    assert shares(later)["b"] == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("seconds", [0.01, 1.0, 100.0])
def test_peak_ewma_neither_floods_nor_starves_a_new_host(seconds: float) -> None:
    hosts = pool(1, 1, 1, 1)
    for host in hosts[:3]:
        host.mean.observe(seconds, 0.0)
        host.in_flight = 3
    strategy = named("peak_ewma")
    new = hosts[3]
    while new.in_flight < 3:  # it is taken until it has as many as the others
        strategy.pick(hosts, at()).in_flight += 1
    assert max(host.in_flight for host in hosts) <= 6


def test_a_strategy_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"'best'; there are round_robin, random"):
        strategy_of("best", random.Random())  # type: ignore[arg-type]
