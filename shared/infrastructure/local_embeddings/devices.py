"""Which processor a model runs on, and how many threads it may use."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from shared.infrastructure.local_embeddings.errors import DeviceUnavailableError
from shared.infrastructure.local_embeddings.memory.cgroups import (
    PROC,
    control_groups,
    read_int,
    read_text,
)


@dataclass(frozen=True, slots=True)
class Device:
    """A processor.

    Attributes:
        name: `cpu` or `cuda:N`.
        reason: Why this one, in words.
    """

    name: str
    reason: str

    @property
    def is_cuda(self) -> bool:
        """Whether it is a CUDA device."""
        return self.name != "cpu"

    @property
    def index(self) -> int:
        """Number of the CUDA device; 0 for the CPU."""
        return int(self.name.partition(":")[2] or 0)


def choose_device(requested: str, *, cuda_devices: int, library: str) -> Device:
    """Pick a device out of those a library can use.

    Args:
        requested: `auto`, `cpu`, `cuda` or `cuda:N`.
        cuda_devices: CUDA devices the library sees.
        library: Its name, for the message.

    Raises:
        DeviceUnavailableError: A CUDA device was asked for that the library does not see.
    """
    if requested == "cpu":
        return Device("cpu", "as configured")
    if requested == "auto":
        if cuda_devices:
            return Device("cuda:0", f"{library} sees {cuda_devices} CUDA device(s)")
        return Device("cpu", f"{library} sees no CUDA device")
    device = Device(f"cuda:{requested.partition(':')[2] or 0}", "as configured")
    if device.index >= cuda_devices:
        raise DeviceUnavailableError(
            f"device {requested!r} is not available: {library} sees {cuda_devices} CUDA "
            "device(s); use device='cpu' or 'auto', or install the library's CUDA build"
        )
    return device


def usable_cpus(proc: Path = PROC) -> int:
    """Return the CPUs this process may keep busy: its affinity, capped by its container's quota.

    Libraries size their thread pools by the host, which makes a small container on a large host
    thrash. Of the quotas of its control group and of every parent the smallest counts, rounded up.

    Args:
        proc: Where the proc file system is mounted.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    groups = control_groups("cpu", proc)
    if groups is None:
        return cpus
    quotas = [_quota(directory, groups.version) for directory in groups.directories]
    return max(1, math.ceil(min(cpus, *quotas)))


def _quota(directory: str, version: int) -> float:
    """Return the CPUs that a control group may keep busy; infinite if it has no quota."""
    if version == 1:
        quota = read_int(f"{directory}/cpu.cfs_quota_us")
        period = read_int(f"{directory}/cpu.cfs_period_us")
    else:
        pair = (read_text(f"{directory}/cpu.max") or "").split()
        quota, period = (int(field) if field.isdecimal() else None for field in (*pair, "", "")[:2])
    return quota / period if quota and period and quota > 0 else math.inf
