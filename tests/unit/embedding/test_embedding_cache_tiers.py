import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from services.embedding.caching import EmbeddingCache, MemoryTier, RedisTier
from services.embedding.caching.behind import Outage, WriteBehind
from services.embedding.caching.records import Kept
from services.embedding.outcome import Embedded
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.resilience import MissingExtraError
from shared.infrastructure.testing import FakeClock
from tests.cache_entries import DIMENSION, entries_of, entry_of, key_of, same


class ScriptedTier:
    """A slower tier that writes at once, and remembers what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kept: dict[bytes, Kept] = {}
        self.asked: list[list[bytes]] = []
        self.dimension: int | None = None
        self.closed = False

    async def start(self, dimension: int) -> None:
        self.dimension = dimension

    async def aclose(self) -> None:
        self.closed = True

    async def fetch(self, keys: Sequence[bytes]) -> dict[bytes, Kept]:
        self.asked.append(list(keys))
        return {key: self.kept[key] for key in keys if key in self.kept}

    def put(self, key: bytes, kept: Kept) -> None:
        self.kept[key] = kept

    def clear(self) -> None:
        self.kept.clear()

    def snapshot(self) -> dict[str, Any]:
        return {"entries": len(self.kept)}


class Shelves:
    """A cache on two scripted tiers."""

    def __init__(self, ttl: float | None = None, size: int = 100) -> None:
        self.clock = FakeClock()
        self.wall = 1e9
        self.file, self.remote = ScriptedTier("disk"), ScriptedTier("redis")
        memory = MemoryTier(size, 2**30, ttl=ttl, clock=self.clock)
        self.cache = EmbeddingCache(
            memory, [self.file, self.remote], ttl=ttl, wall=lambda: self.wall
        )

    def pass_time(self, seconds: float) -> None:
        self.clock.stall(seconds)
        self.wall += seconds


async def test_what_is_put_is_in_every_tier() -> None:
    shelves = Shelves()
    await shelves.cache.start(DIMENSION)
    shelves.cache.put(entries_of(range(3)))
    for number in range(3):
        key = key_of(number)
        assert same(shelves.cache.get(key), entry_of(number))
        assert same(shelves.file.kept[key].entry, entry_of(number))
        assert same(shelves.remote.kept[key].entry, entry_of(number))
    assert shelves.file.dimension == DIMENSION
    await shelves.cache.close()
    assert shelves.file.closed
    assert shelves.remote.closed


async def test_what_a_slower_tier_has_is_kept_in_the_faster_ones() -> None:
    shelves = Shelves()
    shelves.file.kept[key_of(1)] = Kept(entry_of(1))
    shelves.remote.kept |= {key_of(1): Kept(entry_of(1)), key_of(2): Kept(entry_of(2))}
    found = await shelves.cache.fetch([key_of(number) for number in (1, 2, 3, 1)])
    assert found.keys() == {key_of(1), key_of(2)}
    assert all(same(found[key_of(number)], entry_of(number)) for number in (1, 2))
    assert shelves.file.asked == [[key_of(1), key_of(2), key_of(3)]]
    assert shelves.remote.asked == [[key_of(2), key_of(3)]]
    assert same(shelves.cache.peek(key_of(2)), entry_of(2))
    assert same(shelves.file.kept[key_of(2)].entry, entry_of(2))
    assert key_of(3) not in shelves.remote.kept


async def test_no_tier_is_asked_for_nothing() -> None:
    shelves = Shelves()
    assert await shelves.cache.fetch([]) == {}
    shelves.file.kept[key_of(1)] = Kept(entry_of(1))
    await shelves.cache.fetch([key_of(1)])
    assert shelves.remote.asked == []


async def test_what_is_found_is_given_though_memory_keeps_nothing() -> None:
    shelves = Shelves(size=0)
    shelves.cache.put({key_of(1): entry_of(1)})
    assert shelves.cache.get(key_of(1)) is None
    assert same((await shelves.cache.fetch([key_of(1)]))[key_of(1)], entry_of(1))


@pytest.mark.parametrize(
    "vector",
    [
        np.full(DIMENSION, np.nan, np.float32),
        np.array([1.0] * (DIMENSION - 1) + [np.inf], np.float32),
        np.ones(DIMENSION + 1, np.float32),
        np.ones((1, DIMENSION), np.float32),
    ],
    ids=["nan", "infinity", "too long", "a matrix"],
)
async def test_a_vector_that_cannot_be_right_is_kept_nowhere(vector: Any) -> None:
    shelves = Shelves()
    await shelves.cache.start(DIMENSION)
    shelves.cache.put({key_of(1): Embedded(vector, 1, truncated=False), key_of(2): entry_of(2)})
    assert shelves.cache.peek(key_of(1)) is None
    assert shelves.file.kept.keys() == shelves.remote.kept.keys() == {key_of(2)}
    assert shelves.cache.snapshot()["refused"] == 1


async def test_an_entry_is_no_younger_for_having_been_in_another_tier() -> None:
    shelves = Shelves(ttl=100.0)
    shelves.cache.put({key_of(1): entry_of(1)})
    assert shelves.file.kept[key_of(1)].ends == shelves.wall + 100
    shelves.pass_time(60)
    shelves.cache._memory.clear()
    await shelves.cache.fetch([key_of(1)])
    shelves.pass_time(39)
    assert shelves.cache.peek(key_of(1)) is not None
    shelves.pass_time(1)
    assert shelves.cache.peek(key_of(1)) is None


async def test_a_wall_clock_that_was_set_back_makes_no_entry_last_longer() -> None:
    shelves = Shelves(ttl=100.0)
    shelves.cache.put({key_of(1): entry_of(1)})
    shelves.cache._memory.clear()
    shelves.wall -= 3600
    await shelves.cache.fetch([key_of(1)])
    shelves.clock.stall(100)
    assert shelves.cache.peek(key_of(1)) is None


async def test_a_model_of_another_dimension_starts_with_nothing_in_memory() -> None:
    shelves = Shelves()
    await shelves.cache.start(DIMENSION)
    shelves.cache.put({key_of(1): entry_of(1)})
    await shelves.cache.start(DIMENSION)
    assert len(shelves.cache) == 1
    await shelves.cache.start(DIMENSION + 1)
    assert len(shelves.cache) == 0


async def test_a_hit_is_what_any_tier_had() -> None:
    shelves = Shelves()
    assert shelves.cache.snapshot()["hit_rate"] == 0.0
    shelves.cache.put({key_of(1): entry_of(1)})
    shelves.file.kept[key_of(2)] = Kept(entry_of(2))
    for number in (1, 2, 3, 4):
        if shelves.cache.get(key_of(number)) is None:
            await shelves.cache.fetch([key_of(number)])
    counted = shelves.cache.snapshot()
    assert (counted["hits"], counted["misses"], counted["hit_rate"]) == (2, 2, 0.5)
    assert counted["tiers"]["memory"]["hits"] == 1
    assert (counted["entries"], counted["max_entries"], counted["evictions"]) == (2, 100, 0)
    assert counted["tiers"]["disk"] == {"entries": 2}


async def test_clearing_reaches_every_tier() -> None:
    shelves = Shelves()
    shelves.cache.put(entries_of(range(3)))
    shelves.cache.clear()
    assert len(shelves.cache) == len(shelves.file.kept) == 0


async def test_settings_say_which_tiers_there_are(tmp_path: Path) -> None:
    plain = EmbeddingCache.from_settings(EmbeddingSettings(cache_size=7, cache_bytes=99))
    assert not plain.has_lower_tiers
    assert list(plain.snapshot()["tiers"]) == ["memory"]
    assert (plain.snapshot()["max_entries"], plain.snapshot()["max_bytes"]) == (7, 99)
    url = SecretStr("redis://user:geheim@127.0.0.1:1/0")
    cache = EmbeddingCache.from_settings(
        EmbeddingSettings(cache_file=tmp_path / "cache.db", cache_redis_url=url)
    )
    assert cache.has_lower_tiers
    assert list(cache.snapshot()["tiers"]) == ["memory", "disk", "redis"]
    assert "geheim" not in repr(cache.snapshot())


def test_redis_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "services.embedding.caching.redis_client", raising=False)
    monkeypatch.setitem(sys.modules, "redis.exceptions", None)
    with pytest.raises(MissingExtraError, match=r"morgan-sdk\[redis\]"):
        RedisTier("redis://127.0.0.1:1")


class Sink:
    """What entries are written to, when it is let."""

    def __init__(self) -> None:
        self.batches: list[dict[bytes, Kept]] = []

    async def __call__(self, entries: Any) -> None:
        self.batches.append(dict(entries))


async def test_what_is_written_behind_is_written_in_batches_and_once() -> None:
    sink = Sink()
    behind = WriteBehind(sink, batch=3)
    for number in (0, 1, 2, 3, 1):
        behind.put(key_of(number), Kept(entry_of(number)))
    assert sink.batches == []
    await behind.flush()
    assert [len(batch) for batch in sink.batches] == [3, 1]
    assert len(behind) == 0
    behind.put(key_of(4), Kept(entry_of(4)))
    await behind.aclose(1.0)
    assert list(sink.batches[2]) == [key_of(4)]


async def test_what_finds_no_room_behind_is_dropped_and_counted() -> None:
    sink = Sink()
    behind = WriteBehind(sink, max_bytes=3 * DIMENSION * 4)
    for number in range(5):
        behind.put(key_of(number), Kept(entry_of(number)))
    assert (len(behind), behind.dropped) == (3, 2)
    await behind.flush()
    behind.put(key_of(5), Kept(entry_of(5)))
    assert (len(behind), behind.dropped) == (1, 2)
    behind.clear()
    await behind.flush()
    assert len(sink.batches) == 1


async def test_a_key_that_waits_takes_room_once() -> None:
    sink = Sink()
    behind = WriteBehind(sink, max_bytes=3 * DIMENSION * 4)
    for _ in range(2):
        for number in (0, 0, 0, 1, 2):
            behind.put(key_of(number), Kept(entry_of(number)))
        assert (len(behind), behind.dropped) == (3, 0)
        await behind.flush()
    assert len(sink.batches) == 2


async def test_what_is_put_after_clearing_is_written_though_a_write_is_under_way() -> None:
    batches: list[dict[bytes, Kept]] = []

    async def write(entries: Mapping[bytes, Kept]) -> None:
        batches.append(dict(entries))
        if len(batches) == 1:
            behind.clear()
            behind.put(key_of(0), second)

    first, second = Kept(entry_of(0)), Kept(entry_of(0))
    behind = WriteBehind(write)
    behind.put(key_of(0), first)
    await behind.flush()
    assert [batch[key_of(0)] is second for batch in batches] == [False, True]
    assert len(behind) == 0


async def test_a_write_that_fails_stops_none_after_it(caplog: pytest.LogCaptureFixture) -> None:
    written: list[bytes] = []

    async def picky(entries: Mapping[bytes, Kept]) -> None:
        if key_of(0) in entries:
            raise ValueError("poison")
        written.extend(entries)

    behind = WriteBehind(picky, batch=2)
    for number in range(6):
        behind.put(key_of(number), Kept(entry_of(number)))
    await behind.flush()
    assert (written, len(behind)) == ([key_of(number) for number in range(2, 6)], 0)
    assert behind.dropped == 2
    assert len(caplog.messages) == 1
    await behind.aclose(1.0)


async def test_what_cannot_be_written_in_time_is_given_up_in_the_end() -> None:
    async def never(_: object) -> None:
        await FakeClock().sleep(1)

    behind = WriteBehind(never)
    behind.put(key_of(1), Kept(entry_of(1)))
    await behind.aclose(0.01)
    assert (len(behind), behind.dropped) == (0, 1)


def test_an_outage_is_told_once_at_its_beginning_and_once_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    clock = FakeClock()
    outage = Outage("the shelf", "no books", retry_every=10.0, clock=clock)
    outage.worked()
    assert not outage.pauses
    outage.failed("it burns")
    outage.failed("it still burns")
    assert outage.pauses
    clock.stall(10)
    assert not outage.pauses
    assert outage.is_on
    outage.worked()
    assert (outage.is_on, outage.pauses, outage.count) == (False, False, 2)
    assert caplog.messages == ["the shelf: it burns; no books", "the shelf works again"]
