"""A made-up /proc and /sys: what a process in a container sees of itself."""

import os
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
GIB = 2**30


class FakeLinux:
    def __init__(self, root: Path, *, total: int = 8 * GIB, available: int = 6 * GIB) -> None:
        self.proc = root / "proc"
        self.sys = root / "sys fs"  # a path that mountinfo has to escape
        self.process("self", resident=0)
        (self.proc / "meminfo").write_text(
            f"MemTotal:       {total // 1024} kB\n"
            f"MemFree:               1 kB\n"
            f"MemAvailable:   {available // 1024} kB\n"
        )

    def process(self, pid: int | str, *, resident: int, shared: int = 0) -> None:
        directory = self.proc / str(pid)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "statm").write_text(f"99999 {resident // PAGE} {shared // PAGE} 1 0 1 0\n")

    def version_2(self, path: str, *, root: str = "/") -> None:
        """Put this process into a group of the one hierarchy, of which `root` is mounted."""
        self._stand("0", "", path, "cgroup2", root, "rw,nsdelegate")

    def version_1(self, controllers: str, path: str, *, root: str = "/") -> None:
        """Put it into a group of the hierarchy that has the controllers."""
        self._stand("4", controllers, path, "cgroup", root, f"rw,{controllers}")

    def group(self, path: str, **files: str | int) -> None:
        """Write files of a group; its path is that below the mount point, `__` in names a dot."""
        directory = self.sys / path
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name.replace("__", ".")).write_text(f"{content}\n")

    def _stand(
        self, number: str, controllers: str, path: str, kind: str, root: str, options: str
    ) -> None:
        mount_point = str(self.sys).replace(" ", "\\040")
        (self.proc / "self/cgroup").write_text(
            f"9:name=systemd:/elsewhere\n{number}:{controllers}:{path}\n"
        )
        (self.proc / "self/mountinfo").write_text(
            f"22 27 0:21 / /proc rw,relatime - proc proc rw\n"
            f"31 23 0:28 {root} {mount_point} rw,relatime shared:9 - {kind} {kind} {options}\n"
        )
