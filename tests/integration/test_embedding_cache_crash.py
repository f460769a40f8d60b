"""The cache's file under what happens to files: a killed writer, a full disk, two users."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from services.embedding.caching import DiskTier
from tests.cache_entries import DIMENSION, entry_of, key_of, same

ROOT = Path(__file__).parents[2]
MB = 2**20
BEGIN = f"""
import asyncio, json, logging, os, resource, sys
from pathlib import Path
from services.embedding.caching import DiskTier
from services.embedding.caching.records import Kept
from shared.infrastructure.testing import FakeClock
from tests.cache_entries import entry_of, key_of, same

path = Path(sys.argv[1])
logging.basicConfig(filename=path.with_suffix(".log"), format="%(levelname)s %(message)s")
clock = FakeClock()
tier = DiskTier(path, 64 * {MB}, timeout=30.0, clock=clock)

async def put(numbers):
    for number in numbers:
        tier.put(key_of(number), Kept(entry_of(number)))
    await tier._behind.flush()

async def right(numbers):
    found = await tier.fetch([key_of(number) for number in numbers])
    assert all(same(found[key_of(n)].entry, entry_of(n)) for n in numbers if key_of(n) in found)
    return len(found)
"""
WRITE_FOR_EVER = """
async def main():
    await tier.start(8)
    begin = int(sys.argv[2])
    while True:
        await put(range(begin, begin + 40))
        begin += 40
        print(begin, flush=True)

asyncio.run(main())
"""
FILL_THE_DISK = """
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    await tier.start(8)
    await put(range(100))
    log = os.stat(f"{path}-wal").st_size
    limit(log)  # no file grows from here on: what SQLite gets is what a full disk gives
    seen = []
    for begin in range(100, 3000, 100):
        await put(range(begin, begin + 100))
        clock.stall(11)
        seen.append([await right(range(100)), tier.snapshot()["dropped"]])
    during = tier.snapshot()
    limit(resource.RLIM_INFINITY)
    await put(range(5000, 5100))
    back = await right(range(5000, 5100))
    print(json.dumps({"seen": seen, "during": during, "back": back, "after": tier.snapshot()}))
    await tier.aclose()

asyncio.run(main())
"""
SHARE = """
async def main():
    await tier.start(8)
    mine = int(sys.argv[2])
    for begin in range(0, 2000, 50):
        await put(range(begin, begin + 50, mine))
        await right(range(2000))
    print(json.dumps(tier.snapshot()))
    await tier.aclose()

asyncio.run(main())
"""


def child(code: str, path: Path, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BEGIN + code, str(path), *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return json.loads(output)


async def found(path: Path, count: int) -> list[int]:
    """Return which entries are in a file, all of them right."""
    tier = DiskTier(path, 64 * MB, timeout=30.0)
    await tier.start(DIMENSION)
    there = await tier.fetch([key_of(number) for number in range(count)])
    assert tier.snapshot()["corrupt"] == tier.snapshot()["set_aside"] == 0
    await tier.aclose()
    numbers = [number for number in range(count) if key_of(number) in there]
    assert all(same(there[key_of(number)].entry, entry_of(number)) for number in numbers)
    return numbers


def test_all_that_a_killed_process_had_written_is_there_and_right(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    written = 0
    for life in range(3):
        process = child(WRITE_FOR_EVER, path, written)
        assert process.stdout is not None
        for _ in range(3 + 20 * life):
            written = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)  # in the middle of a transaction, mostly
        rest = process.stdout.read().splitlines(keepends=True)
        process.wait()
        process.stdout.close()
        written = int(([str(written)] + [line for line in rest if line.endswith("\n")])[-1])
        assert asyncio.run(found(path, written)) == list(range(written))


def test_a_full_disk_stops_nothing_but_writing(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    result = told(child(FILL_THE_DISK, path))
    assert all(right == 100 for right, _ in result["seen"])
    dropped = [count for _, count in result["seen"]]
    assert dropped == sorted(dropped)
    assert dropped[-1] > dropped[0]
    during, after = result["during"], result["after"]
    assert during["write_failures"] > 1
    assert during["read_failures"] == during["corrupt"] == during["set_aside"] == 0
    assert not during["available"]
    assert result["back"] == 100
    assert after["available"]
    assert after["dropped"] == during["dropped"]
    warnings = path.with_suffix(".log").read_text().splitlines()
    assert len(warnings) == 1
    assert "nothing is written there" in warnings[0]


def test_two_processes_share_a_file_from_its_first_moment_on(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    for result in [told(process) for process in [child(SHARE, path, step) for step in (1, 2, 3)]]:
        assert result["corrupt"] == result["set_aside"] == result["dropped"] == 0
        assert result["available"]
    assert asyncio.run(found(path, 2000)) == list(range(2000))
    assert path.with_suffix(".log").read_text() == ""
