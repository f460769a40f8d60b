"""How much memory is used, and how much there may be."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from shared.infrastructure.local_embeddings.memory.cgroups import (
    PROC,
    control_groups,
    read_int,
    read_text,
)

# Limits, use, and the line of `memory.stat` that counts what is read from files and could be
# dropped at once, by version of the control groups.
_FILES = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    2: (("memory.max", "memory.high"), "memory.current", "inactive_file"),
}


class Gauge(NamedTuple):
    """Memory that ends somewhere.

    Attributes:
        device: Whose it is: `cpu` or `cuda:N`.
        used_bytes: What is taken and cannot be had back at once.
        limit_bytes: What there is.
    """

    device: str
    used_bytes: int
    limit_bytes: int

    @property
    def share(self) -> float:
        """Part that is used, from 0.0; above 1.0 if more is used than may be."""
        return self.used_bytes / self.limit_bytes if self.limit_bytes else 1.0

    @property
    def free_bytes(self) -> int:
        """What can still be had."""
        return max(0, self.limit_bytes - self.used_bytes)


class MemoryReading(NamedTuple):
    """Memory at one moment.

    Attributes:
        rss_bytes: Resident memory of this process and of its workers; None if it cannot be told.
        gauges: All bounds that there are: the limits of this process's control group and of each
            parent, or the machine's memory if none of them is below it, and every GPU in use.
    """

    rss_bytes: int | None = None
    gauges: tuple[Gauge, ...] = ()

    @property
    def limit_bytes(self) -> int | None:
        """The smallest bound on memory outside GPUs; None if none is known."""
        return min((gauge.limit_bytes for gauge in self._host), default=None)

    @property
    def available_bytes(self) -> int | None:
        """What can still be had outside GPUs; None if that is not known."""
        return min((gauge.free_bytes for gauge in self._host), default=None)

    @property
    def _host(self) -> list[Gauge]:
        return [gauge for gauge in self.gauges if gauge.device == "cpu"]


def read_memory(pids: Iterable[int] = (), *, proc: Path = PROC) -> MemoryReading:
    """Read all that can be known of memory now; takes about 0.1 ms, and never fails.

    On another system than Linux nothing is known but of GPUs. Of these only such are read as torch
    has begun to use in this process.

    Args:
        pids: Worker processes whose memory counts as this process's.
        proc: Where the proc file system is mounted.
    """
    host = _group_gauges(proc) or _machine_gauges(proc)
    return MemoryReading(_rss_bytes(pids, proc), (*host, *_cuda_gauges()))


def _rss_bytes(pids: Iterable[int], proc: Path) -> int | None:
    own = _pages(f"{proc}/self/statm")
    if own is None:
        return None
    workers = [_pages(f"{proc}/{pid}/statm") for pid in pids]
    # What a worker shares, above all the weights, is counted once, with this process.
    private = sum(resident - shared for resident, shared in filter(None, workers))
    return (own[0] + private) * os.sysconf("SC_PAGE_SIZE")


def _pages(statm: str) -> tuple[int, int] | None:
    """Return resident and shared pages of a process, or None if it has gone."""
    fields = [int(field) for field in (read_text(statm) or "").split() if field.isdecimal()]
    return (fields[1], fields[2]) if len(fields) > 2 else None


def _group_gauges(proc: Path) -> list[Gauge]:
    groups = control_groups("memory", proc)
    if groups is None:
        return []
    physical = _physical_bytes(proc)
    limit_names, use_name, inactive_name = _FILES[groups.version]
    gauges: list[Gauge] = []
    for directory in groups.directories:
        limits = [read_int(f"{directory}/{name}") for name in limit_names]
        limit = min((limit for limit in limits if limit is not None), default=physical)
        used = read_int(f"{directory}/{use_name}") if limit < physical else None
        if used is not None:
            inactive = _field(read_text(f"{directory}/memory.stat"), inactive_name) or 0
            gauges.append(Gauge("cpu", max(0, used - inactive), limit))
    return gauges


def _machine_gauges(proc: Path) -> list[Gauge]:
    table = read_text(f"{proc}/meminfo")
    total, available = _field(table, "MemTotal:"), _field(table, "MemAvailable:")
    if total is None or available is None:
        return []
    return [Gauge("cpu", 1024 * (total - available), 1024 * total)]


@functools.lru_cache(maxsize=16)
def _physical_bytes(proc: Path) -> int:
    total = _field(read_text(f"{proc}/meminfo"), "MemTotal:")
    # Where it cannot be told, every limit counts but the one that stands for none in version 1.
    return 1024 * total if total is not None else 2**62


def _field(table: str | None, name: str) -> int | None:
    """Return the number that follows a name at the beginning of a line."""
    found = re.search(rf"^{name}\s+(\d+)", table or "", re.MULTILINE | re.ASCII)
    return int(found[1]) if found else None


def _cuda_gauges() -> list[Gauge]:
    torch: Any = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_initialized():
            return []
        return [
            gauge
            for index in range(torch.cuda.device_count())
            if (gauge := _cuda_gauge(torch, index))
        ]
    except Exception:
        # The driver may fail at any time; that is for those to say who compute.
        return []


def _cuda_gauge(torch: Any, index: int) -> Gauge | None:
    allocator = torch.cuda.memory_stats_as_nested_dict(index)
    reserved = _bytes_now(allocator, "reserved_bytes")
    # To ask a device for its free memory is to start using it.
    if not reserved:
        return None
    free, total = torch.cuda.mem_get_info(index)
    # What torch keeps for its next tensors is as good as free.
    kept = reserved - _bytes_now(allocator, "allocated_bytes")
    return Gauge(f"cuda:{index}", total - free - kept, total)


def _bytes_now(allocator: Any, name: str) -> int:
    return int(allocator.get(name, {}).get("all", {}).get("current", 0))
