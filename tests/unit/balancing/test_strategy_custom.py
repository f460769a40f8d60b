"""Strategies of one's own, and PRIORITY, which goes around another one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from shared.infrastructure.balancing.strategies import (
    LoadBalancingStrategy,
    PickContext,
    Priority,
    strategy_of,
)
from shared.infrastructure.resilience import ConfigurationError
from tests.unit.balancing.strategy_hosts import FakeHost, at, named, picks, pool


class Last:
    def pick(self, candidates: Sequence[FakeHost], /) -> FakeHost:
        return candidates[-1]


class ByModel:
    def pick(self, candidates: Sequence[FakeHost], context: PickContext) -> FakeHost:
        return candidates[0 if context.facts.model is None else -1]


class Returns:
    def __init__(self, host: object) -> None:
        self._host = host

    def pick(self, _candidates: Sequence[FakeHost], /) -> Any:
        return self._host


class NeedsThree:
    def pick(self, one: object, two: object, three: object) -> None: ...


class Waits:
    async def pick(self, _candidates: object) -> None: ...


class HasAnAttribute:
    pick = "a"


def custom(strategy: Any) -> Any:
    return strategy_of(strategy, random.Random())


@pytest.mark.parametrize(("strategy", "picked"), [(Last(), "c"), (ByModel(), "a")])
def test_a_pick_takes_the_candidates_and_if_it_likes_the_context(
    strategy: object, picked: str
) -> None:
    assert picks(custom(strategy), pool(1, 1, 1), 2) == picked * 2


@pytest.mark.parametrize("strategy", [NeedsThree(), Waits(), HasAnAttribute(), object(), Last])
def test_what_cannot_pick_is_refused_at_once(strategy: object) -> None:
    with pytest.raises(ConfigurationError, match="pick"):
        custom(strategy)


@pytest.mark.parametrize("picked", [None, "a", FakeHost("a")])
def test_what_is_picked_must_be_a_candidate(picked: object) -> None:
    with pytest.raises(ConfigurationError, match=r"Returns\.pick returned .*no candidate"):
        custom(Returns(picked)).pick(pool(1, 1), at())


def test_an_own_error_in_a_pick_is_not_hidden() -> None:
    with pytest.raises(IndexError):
        custom(Last()).pick((), at())


def tiers(*priorities: int) -> tuple[FakeHost, ...]:
    hosts = pool(*[1.0] * len(priorities))
    for host, priority in zip(hosts, priorities, strict=True):
        host.priority = priority
    return hosts


def test_the_lowest_tier_that_has_a_candidate_gets_all_calls() -> None:
    strategy, hosts = named("priority"), tiers(2, 1, 1, 3)
    assert set(picks(strategy, hosts, 100)) == {"b", "c"}
    assert set(picks(strategy, (hosts[0], hosts[3]), 20)) == {"a"}
    assert set(picks(strategy, hosts[3:], 20)) == {"d"}
    assert set(picks(strategy, hosts, 100)) == {"b", "c"}


@pytest.mark.parametrize("name", list(LoadBalancingStrategy))
def test_within_a_tier_any_strategy_picks(name: str) -> None:
    strategy = custom(Priority(named(name)))
    assert set(picks(strategy, tiers(1, 0, 0), 200)) == {"b", "c"}


def test_turns_within_a_tier_go_on_when_it_is_back() -> None:
    hosts = tiers(0, 0, 0, 1)
    strategy = Priority(named("round_robin"))
    assert picks(strategy, hosts, 9) == "abcabcabc"
    assert picks(strategy, hosts[3:], 3) == "ddd"
    assert picks(strategy, hosts, 6) == "abcabc"
