"""The control groups that Linux keeps this process in: they hold the limits of a container."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")

_FILE_SYSTEMS = {1: "cgroup", 2: "cgroup2"}
_OCTAL = re.compile(r"\\([0-7]{3})")
_CHUNK = 2**16


@dataclass(frozen=True, slots=True)
class ControlGroups:
    """The groups of one controller.

    Attributes:
        version: 1 or 2, of the interface.
        directories: That of this process's own group, then those of its parents, as far as this
            process can see them.
    """

    version: int
    directories: tuple[str, ...]


@functools.lru_cache(maxsize=16)
def control_groups(controller: str, proc: Path = PROC) -> ControlGroups | None:
    """Find the groups of this process, once: a process stays where it was put.

    Args:
        controller: `memory` or `cpu`.
        proc: Where the proc file system is mounted.

    Returns:
        None if there are none, as on another system than Linux.
    """
    paths = _own_paths(read_text(f"{proc}/self/cgroup") or "")
    version = 1 if controller in paths else 2
    path = paths.get(controller, paths.get(""))
    if path is None:
        return None
    mounts = _mounts(read_text(f"{proc}/self/mountinfo") or "", controller, version)
    if not mounts:
        return None
    root, mount_point = mounts[0]
    return ControlGroups(version, _upwards(mount_point, _below(root, path)))


def read_text(path: str) -> str | None:
    """Return what a small file of the kernel says, or None if it is not there.

    Half as dear as `Path.read_text`.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return os.read(file, _CHUNK).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(file)


def read_int(path: str) -> int | None:
    """Return the number that a file of the kernel holds, or None if it holds none, as `max`."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None


def _own_paths(table: str) -> dict[str, str]:
    """Return the group's path by controller; version 2 has one for all, under the empty name."""
    paths: dict[str, str] = {}
    for line in table.splitlines():
        _, _, entry = line.partition(":")
        controllers, _, path = entry.partition(":")
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _mounts(table: str, controller: str, version: int) -> list[tuple[str, str]]:
    """Return root and mount point of the hierarchies that have the controller."""
    found: list[tuple[str, str]] = []
    for line in table.splitlines():
        place, _, kind = line.partition(" - ")
        fields = place.split(" ")
        file_system, _, source_and_options = kind.partition(" ")
        options = source_and_options.rpartition(" ")[2].split(",")
        is_ours = controller in options if version == 1 else True
        if is_ours and file_system == _FILE_SYSTEMS[version] and len(fields) > 4:
            found.append((_unescaped(fields[3]), _unescaped(fields[4])))
    return found


def _below(root: str, path: str) -> list[str]:
    """Return the steps down from the mount point to a group.

    A container may see its own group mounted as the root, but know its path on the host.
    """
    steps = [step for step in path.split("/") if step]
    above = [step for step in root.split("/") if step]
    if ".." in steps or steps[: len(above)] != above:
        return []
    return steps[len(above) :]


def _upwards(mount_point: str, steps: list[str]) -> tuple[str, ...]:
    return tuple("/".join([mount_point, *steps[:depth]]) for depth in range(len(steps), -1, -1))


def _unescaped(path: str) -> str:
    return _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), path)
