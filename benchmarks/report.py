"""Markdown tables, and the machine they were made on."""

import datetime as dt
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results"


class Cell(NamedTuple):
    """What a run saw, and whether that is what the row asks for; None if it does not apply."""

    text: str
    passes: bool | None

    def __str__(self) -> str:
        mark = {True: "✓", False: "✗", None: "·"}[self.passes]
        return f"{mark} {self.text}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def versions(names: Iterable[str]) -> str:
    """Return the distributions compared with, and their versions."""
    distributions = sorted({name.split(" ")[0] for name in names} - {"ours"})
    return ", ".join(f"{name} {_version(name)}" for name in distributions)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def publish(name: str, title: str, body: str, *, keep: bool = True) -> None:
    """Print a result, with date and machine, and if it is to be kept write it to `results/`."""
    text = f"# {title}\n\n{_today()}, {_machine()}.\n\n{body}"
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def publish_data(name: str, data: Mapping[str, object]) -> None:
    """Write figures, with date and machine, to `results/` as JSON."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"date": str(_today()), "machine": _machine(), **data}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _today() -> dt.date:
    return dt.datetime.now(dt.UTC).date()


def _machine() -> str:
    return f"{_cpu_model()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
