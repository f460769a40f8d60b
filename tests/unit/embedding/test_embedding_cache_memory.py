import random
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest

from services.embedding.caching import MemoryTier
from services.embedding.outcome import Embedded
from shared.infrastructure.testing import FakeClock
from tests.cache_entries import DIMENSION, entry_of, key_of, same

ENTRY_BYTES = DIMENSION * 4
POLICIES = pytest.mark.parametrize("policy", ["lru", "sieve"])
ONE = entry_of(0)


def filled(count: int, *, policy: str = "lru", room: int = 3, **options: object) -> MemoryTier:
    tier = MemoryTier(room, 2**30, policy=policy, **options)  # type: ignore[arg-type]
    for number in range(count):
        tier.put(key_of(number), entry_of(number))
    return tier


def held(tier: MemoryTier, count: int) -> list[int]:
    return [number for number in range(count) if tier.peek(key_of(number)) is not None]


def zipf(count: int, keys: int = 10_000) -> list[int]:
    rng = np.random.default_rng(7)
    weights = 1 / np.arange(1, keys + 1) ** 1.1
    return rng.permutation(keys)[rng.choice(keys, count, p=weights / weights.sum())].tolist()


def hits(tier: MemoryTier, trace: list[int]) -> float:
    """Return how many look-ups of a trace were hits, where each miss is kept."""
    found = 0
    for number in trace:
        key = number.to_bytes(32, "little")
        if tier.get(key) is not None:
            found += 1
        else:
            tier.put(key, ONE)
    return found


@POLICIES
def test_an_entry_comes_out_as_it_went_in(policy: str) -> None:
    tier = filled(3, policy=policy)
    assert all(same(tier.get(key_of(number)), entry_of(number)) for number in range(3))
    assert tier.get(key_of(3)) is None
    counted = tier.snapshot()
    assert (counted["hits"], counted["misses"], counted["entries"]) == (3, 1, 3)
    assert counted["bytes"] == 3 * ENTRY_BYTES


def test_what_was_used_longest_ago_goes_first() -> None:
    tier = filled(3)
    tier.get(key_of(0))
    tier.peek(key_of(1))
    tier.put(key_of(3), entry_of(3))
    assert held(tier, 4) == [0, 2, 3]
    assert tier.snapshot()["evictions"] == 1


def test_sieve_passes_what_was_used_once_and_leaves_it_where_it_is() -> None:
    tier = filled(3, policy="sieve")
    tier.get(key_of(0))
    tier.put(key_of(3), entry_of(3))  # the hand passes 0 and stops at 1
    assert held(tier, 4) == [0, 2, 3]
    tier.put(key_of(4), entry_of(4))  # goes on from there
    assert held(tier, 5) == [0, 3, 4]
    tier.get(key_of(3))
    tier.get(key_of(4))
    tier.put(key_of(5), entry_of(5))  # and round again
    assert held(tier, 6) == [3, 4, 5]


@POLICIES
def test_bytes_are_bounded_as_well_as_entries(policy: str) -> None:
    tier = MemoryTier(100, 5 * ENTRY_BYTES, policy=policy)  # type: ignore[arg-type]
    for number in range(20):
        tier.put(key_of(number), entry_of(number))
        assert tier.snapshot()["bytes"] <= 5 * ENTRY_BYTES
    assert len(tier) == 5
    tier.put(key_of(20), entry_of(20, dimension=4 * DIMENSION))
    assert tier.snapshot()["bytes"] == 5 * ENTRY_BYTES
    assert len(tier) == 2


def test_what_is_larger_than_all_room_drives_nothing_out() -> None:
    tier = MemoryTier(100, 5 * ENTRY_BYTES)
    tier.put(key_of(0), entry_of(0))
    assert same(tier.put(key_of(1), entry_of(1, dimension=48)), entry_of(1, dimension=48))
    assert held(tier, 2) == [0]


@POLICIES
def test_no_room_keeps_nothing(policy: str) -> None:
    assert len(filled(3, policy=policy, room=0)) == 0


@POLICIES
def test_an_entry_put_again_replaces_the_first(policy: str) -> None:
    tier = filled(3, policy=policy)
    tier.put(key_of(1), entry_of(9))
    assert same(tier.get(key_of(1)), entry_of(9))
    assert tier.snapshot()["entries"] == 3
    assert tier.snapshot()["bytes"] == 3 * ENTRY_BYTES


def test_what_comes_out_cannot_be_written_to_and_shares_nothing() -> None:
    tier = MemoryTier(3, 2**30)
    batch = np.ones((1000, DIMENSION), np.float32)
    tier.put(key_of(0), Embedded(batch[0], 1, truncated=False))
    batch[:] = 2
    found = tier.get(key_of(0))
    assert found is not None
    assert found.vector.tolist() == [1.0] * DIMENSION
    assert found.vector.base is None
    with pytest.raises(ValueError, match="read-only"):
        found.vector[0] = 5


def test_an_entry_ends_after_its_time_to_live() -> None:
    clock = FakeClock()
    tier = filled(2, ttl=10.0, clock=clock)
    clock.stall(9.9)
    assert tier.get(key_of(0)) is not None  # being used makes it no younger
    tier.put(key_of(1), entry_of(1))  # being put does
    clock.stall(0.1)
    assert tier.get(key_of(0)) is None
    assert tier.peek(key_of(0)) is None
    assert same(tier.peek(key_of(1)), entry_of(1))
    counted = tier.snapshot()
    assert (counted["expired"], counted["entries"], counted["misses"]) == (1, 1, 1)
    assert counted["bytes"] == ENTRY_BYTES


def test_what_has_ended_makes_room_though_nobody_asks_for_it() -> None:
    clock = FakeClock()
    tier = filled(50, room=1000, ttl=10.0, clock=clock)
    clock.stall(11)
    for number in range(50, 100):
        tier.put(key_of(number), entry_of(number))
    assert held(tier, 100) == list(range(50, 100))
    assert tier.snapshot()["entries"] == 50
    assert tier.snapshot()["evictions"] == 0


def test_an_entry_may_have_less_time_left_than_others() -> None:
    clock = FakeClock()
    tier = filled(1, ttl=10.0, clock=clock)
    tier.put(key_of(1), entry_of(1), ttl=3.0)
    clock.stall(3)
    assert held(tier, 2) == [0]


@POLICIES
def test_clearing_forgets_the_entries_and_not_the_counts(policy: str) -> None:
    tier = filled(3, policy=policy, ttl=10.0)
    tier.get(key_of(0))
    tier.clear()
    assert held(tier, 3) == []
    counted = tier.snapshot()
    assert (counted["entries"], counted["bytes"], counted["hits"]) == (0, 0, 1)


def test_popular_texts_are_hit_as_often_as_in_an_ideal_lru() -> None:
    trace = zipf(50_000)
    ideal: OrderedDict[int, None] = OrderedDict()
    best = 0
    for number in trace:
        best += number in ideal
        ideal[number] = None
        ideal.move_to_end(number)
        if len(ideal) > 1000:
            ideal.popitem(last=False)
    for policy, room in (("lru", 0), ("sieve", 1000)):
        tier = MemoryTier(1000, 2**30, policy=policy)  # type: ignore[arg-type]
        assert hits(tier, trace) >= best + room


def test_a_scan_does_not_wash_popular_texts_out_of_a_sieve() -> None:
    popular = zipf(40_000)
    trace: list[int] = []
    for number, text in enumerate(popular):
        trace.append(text)
        if number // 5000 % 2:
            trace.append(10**6 + number)  # never seen again
    rates = {}
    for policy in ("lru", "sieve"):
        tier = MemoryTier(1000, 2**30, policy=policy)  # type: ignore[arg-type]
        rates[policy] = hits(tier, trace) / len(popular)
    assert rates["sieve"] > rates["lru"] + 0.05


def test_an_entry_costs_little_more_than_its_vector() -> None:
    keys = [random.Random(number).randbytes(32) for number in range(2000)]
    batch = np.zeros((1, 384), np.float32)
    tier = MemoryTier(10_000, 2**30)
    tracemalloc.start()
    for key in keys:
        tier.put(key, Embedded(batch[0], 7, truncated=False))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(keys) < 384 * 4 + 400


def test_an_entry_as_large_as_all_room_is_kept() -> None:
    tier = MemoryTier(3, ENTRY_BYTES)
    tier.put(key_of(0), entry_of(0))
    tier.put(key_of(1), entry_of(1))
    assert held(tier, 2) == [1]


def test_an_entry_put_again_was_not_used_yet() -> None:
    tier = filled(3, policy="sieve")
    tier.get(key_of(0))
    tier.put(key_of(0), entry_of(0))
    for number in (3, 4, 5):
        tier.put(key_of(number), entry_of(number))
    assert held(tier, 6) == [3, 4, 5]


@pytest.mark.parametrize("gone", ["evicted", "cleared"])
def test_what_is_gone_does_not_end_as_well(gone: str) -> None:
    clock = FakeClock()
    tier = filled(3, ttl=10.0, clock=clock)
    if gone == "cleared":
        tier.clear()
    else:
        for number in range(3, 6):
            tier.put(key_of(number), entry_of(number))
    clock.stall(10)
    for number in range(3):
        assert tier.get(key_of(number)) is None
    assert tier.snapshot()["expired"] == 0
