"""ROUND_ROBIN: whose turn it is."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.balancing.strategy_hosts import FakeHost, at, named, picks, pool, shares


def furthest(weights: Sequence[float], turns: Sequence[int]) -> float:
    """Return how many turns some host was at most ahead of its share, or behind it."""
    counts, total, most = [0] * len(weights), sum(weights), 0.0
    for number, turn in enumerate(turns, 1):
        counts[turn] += 1
        for count, weight in zip(counts, weights, strict=True):
            most = max(most, abs(count - number * weight / total))
    return most


def ours(weights: Sequence[float], count: int) -> list[int]:
    strategy, hosts = named("round_robin"), pool(*weights)
    return [ord(strategy.pick(hosts, at()).name) - ord("a") for _ in range(count)]


def nginx(weights: Sequence[float], count: int) -> list[int]:
    """Return the turns as nginx gives them: to the most credit, which then pays for all."""
    credit, turns = [0.0] * len(weights), []
    for _ in range(count):
        credit = [have + weight for have, weight in zip(credit, weights, strict=True)]
        best = credit.index(max(credit))
        credit[best] -= sum(weights)
        turns.append(best)
    return turns


def test_the_turns_of_a_heavy_host_are_spread() -> None:
    assert picks(named("round_robin"), pool(5, 1, 1), 14) == "aabaaca" * 2


def test_equal_hosts_take_their_turns_in_order() -> None:
    assert picks(named("round_robin"), pool(1, 1, 1), 9) == "abcabcabc"


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_nobody_is_ever_a_turn_ahead_or_behind(weights: list[float]) -> None:
    assert furthest(weights, ours(weights, 200)) < 1.0


@pytest.mark.parametrize("light", [1, 10, 50])
def test_turns_are_as_smooth_as_those_of_nginx(light: int) -> None:
    weights = [float(light), *[1.0] * light]
    bound = max(1.0, furthest(weights, nginx(weights, 300)))
    assert furthest(weights, ours(weights, 300)) < bound


def longest_run(names: str) -> int:
    return max(len(list(run)) for _, run in groupby(names))


def test_a_host_that_was_away_is_not_owed_what_it_missed() -> None:
    strategy, hosts = named("round_robin"), pool(1, 1, 1)
    picks(strategy, hosts[:2], 100)
    assert longest_run(picks(strategy, hosts, 30)) <= 2


def test_a_new_host_gets_its_share_and_no_more() -> None:
    strategy, hosts = named("round_robin"), pool(1, 1)
    picks(strategy, hosts, 1_000)
    names = picks(strategy, (*hosts, FakeHost("c")), 30)
    assert longest_run(names) <= 2
    assert 10 <= Counter(names)["c"] <= 11


WEIGHTS = st.lists(st.integers(1, 5), min_size=2, max_size=6)


@given(WEIGHTS, st.integers(0, 2**16), st.sampled_from([0.02, 0.2, 1.0]))
def test_who_comes_and_goes_gets_a_fair_share_of_the_picks_it_is_there_for(
    weights: list[float], seed: int, changes: float
) -> None:
    strategy, hosts, chance = named("round_robin"), pool(*weights), random.Random(seed)
    present, ahead = hosts, dict.fromkeys(hosts, 0.0)
    for _ in range(300):
        if chance.random() < changes:
            present = tuple(host for host in hosts if chance.random() < 0.6) or hosts
        total = sum(host.weight for host in present)
        for host in present:
            ahead[host] -= host.weight / total
        ahead[strategy.pick(present, at())] += 1.0
        assert max(map(abs, ahead.values())) < 4.0


@pytest.mark.parametrize("weights", [(1, 1, 1), (2, 1, 1), (5, 3, 2)])
def test_a_host_in_and_out_every_other_pick_gets_no_more_than_its_share(
    weights: tuple[float, ...],
) -> None:
    strategy, (a, b, c) = named("round_robin"), pool(*weights)
    both = [strategy.pick((a, b, c) if n // 2 % 2 else (a, c), at()).name for n in range(4_000)]
    assert Counter(both)["b"] == pytest.approx(2_000 * b.weight / sum(weights), abs=2.0)


@given(WEIGHTS, st.data())
def test_a_host_that_always_fails_gets_no_more_first_attempts_than_its_share(
    weights: list[float], data: st.DataObject
) -> None:
    strategy, hosts = named("round_robin"), pool(*weights)
    bad, burst = data.draw(st.sampled_from(hosts)), data.draw(st.integers(1, 5))
    share, given_bad, again = bad.weight / sum(weights), 0, 0
    for number in range(1, 400):
        if strategy.pick(hosts, at()) is bad:
            given_bad += 1
            again += 1
        if number % burst == 0:  # so that further attempts come several in a row
            while again:
                again -= 1
                strategy.pick(tuple(host for host in hosts if host is not bad), at())
        assert abs(given_bad - number * share) <= 1.0 + 1e-9


def test_hosts_that_keep_changing_are_served_in_turn_too() -> None:
    strategy, hosts, chance = named("round_robin"), pool(1, 1, 1, 1), random.Random(4)
    names = [strategy.pick(tuple(chance.sample(hosts, 3)), at()).name for _ in range(4_000)]
    assert shares(names) == pytest.approx(dict.fromkeys("abcd", 0.25), abs=0.01)


def test_a_host_in_slow_start_grows_into_its_share() -> None:
    strategy, hosts = named("round_robin"), pool(1, 1)
    given_a: list[float] = []
    for second in range(30):
        hosts[0].weight = max(second, 1) / 30
        names = [strategy.pick(hosts, at(second + n / 100)).name for n in range(100)]
        given_a.append(shares(names).get("a", 0.0))
    expected = [w / (w + 1) for w in (max(s, 1) / 30 for s in range(30))]
    assert given_a == pytest.approx(expected, abs=0.04)


class Watched(FakeHost):
    """Counts how often somebody looks at a host."""

    looks = 0

    def __getattribute__(self, name: str) -> object:
        Watched.looks += 1
        return super().__getattribute__(name)


@pytest.mark.parametrize("name", ["round_robin", "p2c", "peak_ewma", "weighted_random", "random"])
def test_a_pick_among_a_thousand_hosts_looks_at_a_few(name: str) -> None:
    strategy = named(name)
    hosts = tuple(Watched(str(number)) for number in range(1_000))
    context = at()
    for _ in range(1_001):
        strategy.pick(hosts, context)
    Watched.looks = 0
    for _ in range(1_000):
        strategy.pick(hosts, context)
    assert Watched.looks <= 12 * 1_000


@pytest.mark.parametrize("name", ["round_robin", "weighted_random", "p2c", "least_loaded"])
def test_new_weights_in_a_new_tuple_hold_at_once(name: str) -> None:
    strategy, hosts = named(name), pool(1, 1)
    picks(strategy, hosts, 100)
    hosts[0].weight = 9.0
    changed = (hosts[0], hosts[1])
    picks(strategy, changed, 2)
    names = picks(strategy, changed, 1_000)
    assert shares(names)["a"] == pytest.approx(0.9, abs=0.03)
