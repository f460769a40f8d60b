import contextlib
import logging
import os
import sqlite3
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from services.embedding.caching import DiskTier
from services.embedding.caching.disk_file import DiskFile
from services.embedding.caching.records import Kept, encode
from services.embedding.outcome import Embedded
from shared.infrastructure.testing import FakeClock
from tests.cache_entries import DIMENSION, entry_of, key_of, same

MB = 2**20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache.db"


@contextlib.asynccontextmanager
async def opened(path: Path, **options: object) -> AsyncGenerator[DiskTier]:
    tier = DiskTier(path, 64 * MB, timeout=30.0, **options)  # type: ignore[arg-type]
    await tier.start(DIMENSION)
    try:
        yield tier
    finally:
        await tier.aclose()


async def fill(path: Path, count: int) -> None:
    async with opened(path) as tier:
        for number in range(count):
            tier.put(key_of(number), Kept(entry_of(number)))


async def found(tier: DiskTier, count: int) -> list[int]:
    """Return which entries there are, all of them right."""
    there = await tier.fetch([key_of(number) for number in range(count)])
    numbers = [number for number in range(count) if key_of(number) in there]
    assert all(same(there[key_of(number)].entry, entry_of(number)) for number in numbers)
    assert len(there) == len(numbers)
    return numbers


def is_folder(path: Path, *, really: bool) -> None:
    path.mkdir(parents=True) if really else path.rmdir()


def mode(path: Path) -> int:
    return path.stat().st_mode


def remove(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


def oldest(path: Path, count: int) -> set[bytes]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {
            key
            for (key,) in connection.execute(
                "SELECT key FROM entries ORDER BY used LIMIT ?", (count,)
            )
        }


def contents(path: Path) -> bytes:
    return path.read_bytes()


def scramble(path: Path) -> None:
    """Overwrite all of a database but the beginning, by which it is known."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(size - 100))


def spoiled(path: Path, spoil: Callable[[Path], None]) -> bytes:
    """Make a file something else; return what it is then."""
    path.parent.mkdir(exist_ok=True)
    spoil(path)
    return contents(path)


def record(number: int, size: int = DIMENSION) -> bytes:
    return encode(key_of(number), Kept(entry_of(number, size)))


def records(numbers: range, size: int = DIMENSION) -> dict[bytes, bytes]:
    return {key_of(number): record(number, size) for number in numbers}


async def test_entries_outlive_the_process(path: Path) -> None:
    await fill(path, 20)
    async with opened(path) as tier:
        assert await found(tier, 21) == list(range(20))
        counted = tier.snapshot()
    assert (counted["entries"], counted["hits"], counted["misses"]) == (20, 20, 1)
    assert counted["bytes"] > 0
    assert mode(path) & 0o077 == 0


async def test_what_waits_to_be_written_is_found(path: Path) -> None:
    async with opened(path) as tier:
        tier.put(key_of(0), Kept(entry_of(0)))
        assert await found(tier, 2) == [0]


async def test_an_entry_that_no_record_can_hold_costs_no_other(path: Path) -> None:
    async with opened(path) as tier:
        tier.put(key_of(0), Kept(Embedded(entry_of(0).vector, -1, False)))
        for number in (1, 2):
            tier.put(key_of(number), Kept(entry_of(number)))
        await tier._behind.flush()
        counted = tier.snapshot()
        assert await found(tier, 3) == [1, 2]
    assert (counted["dropped"], counted["waiting"], counted["write_failures"]) == (1, 0, 0)


async def test_an_entry_written_again_is_one_entry(path: Path) -> None:
    for _ in range(2):
        await fill(path, 5)
    async with opened(path) as tier:
        assert tier.snapshot()["entries"] == 5


async def test_more_keys_than_a_query_takes_are_looked_up(path: Path) -> None:
    await fill(path, 3)
    async with opened(path) as tier:
        assert await found(tier, 33_000) == [0, 1, 2]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entries SET record = zeroblob(length(record)) WHERE id = 2",
        "UPDATE entries SET record = substr(record, 1, 20) WHERE id = 2",
        "UPDATE entries SET record = 'text' WHERE id = 2",
        "UPDATE entries SET record = (SELECT record FROM entries WHERE id = 3) WHERE id = 2",
    ],
    ids=["zeros", "cut", "of another type", "of another key"],
)
async def test_a_corrupt_row_is_a_miss_and_goes(path: Path, damage: str) -> None:
    await fill(path, 5)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(damage)
    async with opened(path) as tier:
        assert await found(tier, 5) == [0, 2, 3, 4]
        assert await found(tier, 5) == [0, 2, 3, 4]
        counted = tier.snapshot()
    assert (counted["corrupt"], counted["entries"]) == (1, 4)


async def test_vectors_of_another_dimension_are_misses(path: Path) -> None:
    await fill(path, 2)
    tier = DiskTier(path, MB)
    await tier.start(DIMENSION + 1)
    assert await tier.fetch([key_of(0), key_of(1)]) == {}
    await tier.aclose()


async def test_an_entry_that_has_ended_is_a_miss_and_goes(path: Path) -> None:
    now = 1e9
    async with opened(path, wall=lambda: now) as tier:
        tier.put(key_of(0), Kept(entry_of(0), ends=now + 10))
        tier.put(key_of(1), Kept(entry_of(1), ends=now + 11))
        await tier._behind.flush()
        assert await found(tier, 2) == [0, 1]
        now += 10
        assert await found(tier, 2) == [1]
        assert tier.snapshot()["corrupt"] == 0
    async with opened(path) as tier:
        assert tier.snapshot()["entries"] == 1


def text_file(path: Path) -> None:
    path.write_text("Dear diary,\n" * 1000)


def foreign_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE diary (day TEXT)")


def later_format(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA user_version = 99")


def no_state(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM state")


def no_table(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE entries")


OF_OURS = (later_format, no_state, no_table)


@pytest.mark.parametrize("spoil", [text_file, foreign_database, *OF_OURS])
async def test_a_file_that_is_none_of_ours_is_set_aside(
    path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    if spoil in OF_OURS:
        await fill(path, 1)
    was = spoiled(path, spoil)
    async with opened(path) as tier:
        tier.put(key_of(3), Kept(entry_of(3)))
        await tier._behind.flush()
        assert await found(tier, 5) == [3]
        assert tier.snapshot()["set_aside"] == 1
        assert tier.snapshot()["available"]
    assert contents(path.with_name("cache.db.aside-1")) == was
    assert len(caplog.messages) == 1
    await fill(path, 3)
    assert len(caplog.messages) == 1


async def test_a_file_that_breaks_while_in_use_is_replaced(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(path, 2000)
    async with opened(path) as tier:
        scramble(path)
        assert await tier.fetch([key_of(number) for number in range(2000)]) == {}
        tier.put(key_of(1), Kept(entry_of(1)))
        await tier._behind.flush()
        assert await found(tier, 2000) == [1]
        assert tier.snapshot()["set_aside"] == 1
    assert len(caplog.messages) == 1


async def test_a_file_that_cannot_be_opened_is_done_without_and_tried_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    is_folder(path, really=True)
    clock = FakeClock()
    async with opened(path, clock=clock) as tier:
        tier.put(key_of(1), Kept(entry_of(1)))
        await tier._behind.flush()
        assert await found(tier, 3) == []
        assert not tier.snapshot()["available"]
        assert tier.snapshot()["dropped"] == 1
        is_folder(path, really=False)
        assert await found(tier, 3) == []  # too early
        clock.stall(10)
        tier.put(key_of(2), Kept(entry_of(2)))
        await tier._behind.flush()
        assert await found(tier, 3) == [2]
        assert tier.snapshot()["available"]
    warnings = [entry for entry in caplog.records if entry.levelno == logging.WARNING]
    assert len(warnings) == 2  # for reading, and for writing


async def test_a_file_that_is_removed_while_in_use_is_begun_anew(path: Path) -> None:
    async with opened(path) as tier:
        tier.put(key_of(0), Kept(entry_of(0)))
        await tier._behind.flush()
        remove(path)
        for number in range(1, 4):
            tier.put(key_of(number), Kept(entry_of(number)))
            await tier._behind.flush()
        assert tier.snapshot()["available"]
    async with opened(path) as tier:
        assert await found(tier, 4) == [1, 2, 3]


async def test_what_was_only_read_is_what_was_used_last(path: Path) -> None:
    await fill(path, 10)
    async with opened(path) as tier:
        for number in range(10, 20):  # makes the first ones old
            tier.put(key_of(number), Kept(entry_of(number)))
            await tier._behind.flush()
    async with opened(path) as tier:
        await tier.fetch([key_of(3)])
    assert oldest(path, 9) == {key_of(number) for number in range(10)} - {key_of(3)}


async def test_clearing_deletes_every_entry(path: Path) -> None:
    async with opened(path) as tier:
        for number in range(10):
            tier.put(key_of(number), Kept(entry_of(number)))
            if number == 4:
                await tier._behind.flush()
        tier.clear()
        assert await found(tier, 10) == []
    async with opened(path) as tier:
        assert await found(tier, 10) == []
        assert tier.snapshot()["entries"] == 0


async def test_a_tier_that_has_been_closed_keeps_quiet(path: Path) -> None:
    async with opened(path) as tier:
        pass
    tier.put(key_of(1), Kept(entry_of(1)))
    tier.clear()
    await tier.aclose()
    assert await tier.fetch([key_of(1)]) == {}


@pytest.mark.parametrize("size", [384, 1024, 1536])
def test_a_full_file_stays_below_its_size_and_keeps_what_was_used_last(
    path: Path, size: int
) -> None:
    file = DiskFile(path, 2 * MB)
    rows = 6 * MB // (size * 4)
    favourite = key_of(0)
    for start in range(0, rows, 32):
        file.write(records(range(start, start + 32), size))
        assert file.read([favourite]) == {favourite: record(0, size)}
        assert path.stat().st_size <= 2.2 * MB
    assert file.evictions > rows / 2
    kept = file.read([key_of(number) for number in range(start + 32)])
    assert len(kept) == file.entries
    newest = {key_of(number) for number in range(start, start + 32)}
    assert newest < kept.keys()
    assert 2 * MB * 0.45 < len(kept) * size * 4 < 2 * MB
    file.close()


def test_a_file_that_is_too_large_shrinks_step_by_step(path: Path) -> None:
    file = DiskFile(path, 64 * MB)
    file.write(records(range(4000), 384))
    file.close()
    small = DiskFile(path, MB)
    small.open()
    assert path.stat().st_size > 4 * MB
    sizes: list[int] = []
    for number in range(10_000, 10_030):
        small.write(records(range(number, number + 1), 384))
        sizes.append(small.size_bytes)
    assert sizes[0] > 4 * MB
    assert sizes[:5] == sorted(sizes[:5], reverse=True)
    assert 0.8 * MB < min(sizes[15:]) <= max(sizes[15:]) <= 1.1 * MB
    assert small.read([key_of(10_029)])
    small.close()
    assert path.stat().st_size <= 1.1 * MB


def test_two_files_on_one_path_see_what_the_other_writes(path: Path) -> None:
    one, other = DiskFile(path, MB), DiskFile(path, MB)
    one.open()
    other.open()
    one.write(records(range(5)))
    other.write(records(range(3, 8)))
    assert one.read([key_of(number) for number in range(9)]) == records(range(8))
    one.discard([key_of(0)])
    assert other.read([key_of(0)]) == {}
    other.write(records(range(8, 9)))
    assert other.entries == 8
    one.close()
    other.close()


def test_only_the_first_to_notice_sets_a_broken_file_aside(path: Path) -> None:
    one, other = DiskFile(path, 64 * MB), DiskFile(path, 64 * MB)
    one.write(records(range(2000)))
    one.close()
    for file in (one, other):
        file.open()
    scramble(path)
    keys = [key_of(number) for number in range(2000)]
    assert one.read(keys) == {}
    one.write(records(range(1)))
    assert other.read(keys) == records(range(1))
    assert (one.set_aside, other.set_aside) == (1, 0)
    # With its log, which is none of the new file's.
    asides = {file.name for file in path.parent.iterdir() if "aside" in file.name}
    assert asides == {f"cache.db.aside-1{suffix}" for suffix in ("", "-wal", "-shm")}
    one.close()
    other.close()
