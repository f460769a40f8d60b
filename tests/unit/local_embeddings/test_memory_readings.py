import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.infrastructure.local_embeddings.memory.readings import (
    Gauge,
    MemoryReading,
    read_memory,
)
from tests.unit.local_embeddings.fake_linux import GIB, FakeLinux

MIB = 2**20


@pytest.fixture
def linux(tmp_path: Path) -> FakeLinux:
    return FakeLinux(tmp_path)


def gauges(linux: FakeLinux) -> list[tuple[int, int]]:
    """Used and limit of each, in MiB."""
    return [
        (gauge.used_bytes // MIB, gauge.limit_bytes // MIB)
        for gauge in read_memory(proc=linux.proc).gauges
        if gauge.device == "cpu"
    ]


def test_without_control_groups_the_machines_memory_is_the_bound(linux):
    assert gauges(linux) == [(2048, 8192)]


def test_files_that_could_be_dropped_do_not_count_as_used(linux):
    linux.version_2("/pod")
    stat = f"anon 1\ninactive_file {300 * MIB}\nactive_file {9 * GIB}"
    linux.group("pod", memory__max=GIB, memory__current=500 * MIB, memory__stat=stat)
    assert gauges(linux) == [(200, 1024)]


@pytest.mark.parametrize(
    ("maximum", "high", "limit"),
    [(2 * GIB, "max", 2048), ("max", GIB, 1024), (2 * GIB, GIB, 1024), (GIB, 2 * GIB, 1024)],
)
def test_a_group_ends_at_the_smaller_of_its_two_limits(linux, maximum, high, limit):
    linux.version_2("/pod")
    linux.group("pod", memory__max=maximum, memory__high=high, memory__current=MIB)
    assert gauges(linux) == [(1, limit)]


def test_every_parent_that_has_a_limit_is_a_bound(linux):
    linux.version_2("/slice/pod/leaf")
    linux.group("slice/pod/leaf", memory__max="max", memory__current=MIB)
    linux.group("slice/pod", memory__max=2 * GIB, memory__current=5 * MIB)
    linux.group("slice", memory__max=GIB, memory__current=7 * MIB)
    reading = read_memory(proc=linux.proc)
    assert gauges(linux) == [(5, 2048), (7, 1024)]
    assert reading.limit_bytes == GIB
    assert reading.available_bytes == GIB - 7 * MIB


def test_a_limit_beyond_the_machines_memory_is_none(linux):
    linux.version_2("/pod")
    linux.group("pod", memory__max=9 * GIB, memory__current=MIB)
    assert gauges(linux) == [(2048, 8192)]


def test_a_container_that_sees_its_own_group_as_the_root_finds_its_limit(linux):
    linux.version_2("/", root="/")
    linux.group("", memory__max=GIB, memory__current=MIB)
    assert gauges(linux) == [(1, 1024)]


@pytest.mark.parametrize("path", ["/docker/abc", "/", "/docker/other", "/../abc"])
def test_a_container_that_knows_its_group_by_the_hosts_path_finds_its_limit(linux, path):
    linux.version_1("memory", path, root="/docker/abc")
    linux.group("", memory__limit_in_bytes=GIB, memory__usage_in_bytes=MIB)
    assert gauges(linux) == [(1, 1024)]


def test_a_group_below_the_one_that_is_mounted_is_found(linux):
    linux.version_1("memory", "/docker/abc/pod", root="/docker/abc")
    linux.group("pod", memory__limit_in_bytes=GIB, memory__usage_in_bytes=MIB)
    linux.group("", memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=2 * MIB)
    assert gauges(linux) == [(1, 1024), (2, 2048)]


@pytest.mark.parametrize("path", ["/other/abc/pod", "/docker/abc/../pod"])
def test_a_group_that_is_not_mounted_is_not_mistaken_for_one_that_is(linux, path):
    linux.version_1("memory", path, root="/docker/abc")
    linux.group("pod", memory__limit_in_bytes=GIB, memory__usage_in_bytes=MIB)
    linux.group("", memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=2 * MIB)
    assert gauges(linux) == [(2, 2048)]


def test_version_1_counts_the_same_way(linux):
    linux.version_1("cpuset,memory", "/pod")
    linux.group(
        "pod",
        memory__limit_in_bytes=GIB,
        memory__usage_in_bytes=500 * MIB,
        memory__stat=f"inactive_file 1\ntotal_inactive_file {300 * MIB}",
    )
    linux.group("", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=GIB)
    assert gauges(linux) == [(200, 1024)]


def test_resident_memory_counts_what_is_shared_once(linux):
    linux.process("self", resident=100 * MIB, shared=80 * MIB)
    linux.process(7, resident=90 * MIB, shared=80 * MIB)
    linux.process(8, resident=85 * MIB, shared=80 * MIB)
    assert read_memory(proc=linux.proc).rss_bytes == 100 * MIB
    assert read_memory((7, 8, 9), proc=linux.proc).rss_bytes == 115 * MIB  # 9 has gone


def test_elsewhere_than_on_linux_nothing_is_known(tmp_path):
    reading = read_memory(proc=tmp_path / "none")
    assert reading == MemoryReading(None, ())
    assert (reading.limit_bytes, reading.available_bytes) == (None, None)


def test_this_process_has_a_size_and_a_bound():
    reading = read_memory()
    assert reading.rss_bytes is not None
    assert reading.limit_bytes is not None
    assert 2**20 < reading.rss_bytes < reading.limit_bytes


@settings(deadline=None, derandomize=True)
@given(st.lists(st.text("0:/ -,\nmaxcgroup2emry.", max_size=40), min_size=5, max_size=5))
def test_no_content_of_the_files_makes_it_fail(tmp_path_factory, contents):
    linux = FakeLinux(tmp_path_factory.mktemp("linux"))
    linux.version_2("/pod")
    linux.group("pod", memory__max=contents[0], memory__current=contents[1])
    linux.group("pod", memory__stat=f"inactive_file {contents[2]}")
    for name in ("self/cgroup", "self/mountinfo", "meminfo", "self/statm"):
        with (linux.proc / name).open("a") as file:
            file.write(contents[3] + "\nMemTotal: " + contents[4] + "\n")
    read_memory(proc=linux.proc)
    (linux.proc / "self/statm").write_text(contents[0])
    (linux.proc / "meminfo").write_text(f"MemTotal: {contents[1]}\nMemAvailable: {contents[2]}")
    (linux.proc / "self/mountinfo").write_text(contents[4])
    read_memory(proc=linux.proc)


class FakeCuda:
    """Two GPUs of 80 GiB; torch has memory only on the second."""

    asked: list[int]

    def __init__(self, *, initialized: bool = True) -> None:
        self.asked = []
        self.is_initialized = lambda: initialized
        self.device_count = lambda: 2

    def memory_stats_as_nested_dict(self, index: int) -> dict[str, object]:
        if index == 0:
            return {}
        return {
            "reserved_bytes": {"all": {"current": 30 * GIB}},
            "allocated_bytes": {"all": {"current": 10 * GIB}},
        }

    def mem_get_info(self, index: int) -> tuple[int, int]:
        self.asked.append(index)
        return 40 * GIB, 80 * GIB


def test_a_gpu_counts_once_it_is_used_without_what_torch_keeps_for_later(monkeypatch, linux):
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert read_memory(proc=linux.proc).gauges[1:] == (Gauge("cuda:1", 20 * GIB, 80 * GIB),)
    assert cuda.asked == [1]


@pytest.mark.parametrize(
    "torch",
    [
        None,
        SimpleNamespace(),  # half imported
        SimpleNamespace(cuda=FakeCuda(initialized=False)),
        SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: 1 / 0)),
    ],
)
def test_a_gpu_that_is_not_used_or_fails_is_left_out(monkeypatch, linux, torch):
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert [gauge.device for gauge in read_memory(proc=linux.proc).gauges] == ["cpu"]


def test_a_full_gauge_has_nothing_free():
    assert Gauge("cpu", 5, 4).free_bytes == 0
    assert Gauge("cpu", 5, 4).share == 1.25
    assert Gauge("cpu", 0, 0).share == 1.0
