"""CONSISTENT_HASH and PREFIX: calls that belong together go to one host, unless it is too busy."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from shared.infrastructure.balancing.strategies import BalancingStrategy
from shared.infrastructure.balancing.strategies.consistent_hash import Ring
from shared.infrastructure.balancing.strategies.prefix_index import PrefixIndex, blocks_of
from tests.unit.balancing.strategy_hosts import FakeHost, at, named, pool, shares

KEYS = [f"user {number}" for number in range(4_000)]


def homes(strategy: BalancingStrategy, hosts: tuple[FakeHost, ...]) -> dict[str, str]:
    return {key: strategy.pick(hosts, at(affinity=key)).name for key in KEYS}


def test_a_key_stays_with_its_host_also_in_another_process() -> None:
    hosts = pool(*[1.0] * 10)
    assert homes(named("consistent_hash", 1), hosts) == homes(
        named("consistent_hash", 2), tuple(reversed(hosts))
    )


def test_keys_are_spread_evenly() -> None:
    spread = shares(Counter(homes(named("consistent_hash"), pool(*[1.0] * 10)).values()))
    assert spread == pytest.approx(dict.fromkeys("abcdefghij", 0.1), abs=0.03)


def test_a_new_host_takes_its_part_of_the_keys_and_moves_no_others() -> None:
    strategy, hosts = named("consistent_hash"), pool(*[1.0] * 10)
    before, after = homes(strategy, hosts[:9]), homes(strategy, hosts)
    moved = [key for key in KEYS if before[key] != after[key]]
    assert {after[key] for key in moved} == {"j"}
    assert len(moved) / len(KEYS) == pytest.approx(0.1, abs=0.03)


def test_only_the_keys_of_a_host_that_is_away_move_and_they_come_back() -> None:
    strategy, hosts = named("consistent_hash"), pool(*[1.0] * 10)
    before, without, after = (homes(strategy, some) for some in (hosts, hosts[1:], hosts))
    assert {before[key] for key in KEYS if before[key] != without[key]} == {"a"}
    assert after == before


def test_one_hot_key_overloads_nobody() -> None:
    strategy, hosts = named("consistent_hash"), pool(2, 1, 1)
    for number in range(1, 401):
        strategy.pick(hosts, at(affinity="hot")).in_flight += 1
        for host in hosts:
            assert host.in_flight < 1.25 * number * host.weight / 4 + 1


def test_without_an_affinity_the_beginning_of_the_prompt_is_the_key() -> None:
    strategy, hosts = named("consistent_hash"), pool(*[1.0] * 10)
    prompts = [f"{number:05}" + "x" * 2_000 for number in range(50)]
    begun = [strategy.pick(hosts, at(prompt=prompt)) for prompt in prompts]
    gone_on = [strategy.pick(hosts, at(prompt=prompt + "and more")) for prompt in prompts]
    assert gone_on == begun
    assert len(set(begun)) > 3


@pytest.mark.parametrize("name", ["consistent_hash", "prefix"])
def test_where_nothing_is_known_of_the_request_load_decides(name: str) -> None:
    hosts = pool(1, 1)
    hosts[0].in_flight = 1
    assert {named(name).pick(hosts, at()).name for _ in range(20)} == {"b"}


def test_the_ring_forgets_hosts_that_came_and_went() -> None:
    ring = Ring()
    for number in range(100):
        ring.learn({f"pod-{number}": 0, "stays": 1})
    assert len(set(ring.walk("key"))) <= 4
    assert {"pod-99", "stays"} <= set(ring.walk("key"))


def conversation(number: int, turns: int) -> str:
    chance = random.Random(number)
    return "".join(chance.choices("abcdefgh ", k=400 * turns))


def test_a_conversation_goes_on_where_it_began() -> None:
    strategy, hosts = named("prefix"), pool(*[1.0] * 10)
    homes = [strategy.pick(hosts, at(prompt=conversation(n, 4))) for n in range(50)]
    assert len(set(homes)) > 3
    assert homes == [strategy.pick(hosts, at(prompt=conversation(n, 5))) for n in range(50)]


@pytest.mark.parametrize(("shared_blocks", "has_affinity"), [(2, False), (3, True)])
def test_a_prompt_that_shares_too_little_is_placed_by_load(
    shared_blocks: int, has_affinity: bool
) -> None:
    strategy, hosts = named("prefix"), pool(1, 1)
    first = strategy.pick(hosts, at(prompt="s" * 5_120))
    first.in_flight = 1
    prompt = "s" * (512 * shared_blocks) + "t" * (5_120 - 512 * shared_blocks)
    assert (strategy.pick(hosts, at(prompt=prompt)) is first) is has_affinity


@pytest.mark.parametrize(
    ("busy", "idle", "has_affinity"), [(64, 0, True), (65, 0, False), (190, 120, False)]
)
def test_affinity_ends_where_a_host_is_overloaded(busy: int, idle: int, has_affinity: bool) -> None:
    strategy, hosts = named("prefix"), pool(1, 1)
    prompt = conversation(1, 4)
    first = strategy.pick(hosts, at(prompt=prompt))
    for host in hosts:
        host.in_flight = busy if host is first else idle
    assert (strategy.pick(hosts, at(prompt=prompt)) is first) is has_affinity


def test_a_busy_pool_keeps_its_affinity() -> None:
    strategy, hosts = named("prefix"), pool(1, 1)
    prompt = conversation(1, 4)
    first = strategy.pick(hosts, at(prompt=prompt))
    for host in hosts:
        host.in_flight = 290 if host is first else 200
    assert strategy.pick(hosts, at(prompt=prompt)) is first


def test_a_host_that_is_no_candidate_is_replaced_and_the_next_one_remembered() -> None:
    strategy, hosts = named("prefix"), pool(*[1.0] * 5)
    prompt = conversation(1, 4)
    first = strategy.pick(hosts, at(prompt=prompt))
    others = tuple(host for host in hosts if host is not first)
    second = strategy.pick(others, at(prompt=prompt))
    assert second is not first
    assert {strategy.pick(others, at(prompt=prompt)) for _ in range(20)} == {second}


def test_the_same_prompt_for_another_model_has_another_cache() -> None:
    assert not set(blocks_of("p" * 1_000, "one")) & set(blocks_of("p" * 1_000, "other"))


def test_the_index_is_bounded_and_forgets_what_was_not_seen_for_longest() -> None:
    index = PrefixIndex(max_entries=100)
    common = blocks_of("s" * 1_024)
    for number in range(200):
        index.record(common + blocks_of(conversation(number, 3)), "a")
    assert len(index) <= 100
    assert index.match(common, {"a"}) == (["a"], 2)
    assert index.match(blocks_of(conversation(0, 3)), {"a"}) == ([], 0)


def test_of_a_long_prompt_only_the_beginning_is_looked_at() -> None:
    prompt = "p" * 50_000_000
    before = time.thread_time()
    blocks = blocks_of(prompt)
    assert len(blocks) == 64
    assert time.thread_time() - before < 0.005  # all of it would take ten times as long
    assert blocks == blocks_of(prompt[: 64 * 512])
