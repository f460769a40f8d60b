"""Put every library through the same accidents: `python -m benchmarks.conformance`.

Time is virtual, so each cell is what the library does and not what the machine was doing. The
exit status is 1 if ours does not pass every row.
"""

import contextlib
import importlib
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import (
    breaker_scenarios,
    breakers,
    limiter_scenarios,
    limiters,
    retrier_scenarios,
    retriers,
    virtual_time,
)
from benchmarks.report import Cell, publish, table, versions
from benchmarks.virtual_time import VirtualTime


class Subject(NamedTuple):
    """One kind of primitive: its libraries, and what happens to each."""

    title: str
    adapters: dict[str, Callable[..., Any]]
    packages: dict[str, str]
    scenarios: dict[str, Callable[..., Any]]


SUBJECTS = [
    Subject("Circuit breakers", breakers.BREAKERS, breakers.PACKAGES, breaker_scenarios.SCENARIOS),
    Subject("Rate limiters", limiters.LIMITERS, limiters.PACKAGES, limiter_scenarios.SCENARIOS),
    Subject("Retriers", retriers.RETRIERS, retriers.PACKAGES, retrier_scenarios.SCENARIOS),
]


def main() -> int:
    warnings.simplefilter("ignore")
    parts: list[str] = []
    failures: list[str] = []
    for subject in SUBJECTS:
        matrix = run_matrix(subject)
        header = ["", *subject.adapters]
        rows = [[scenario, *cells.values()] for scenario, cells in matrix.items()]
        parts.append(f"## {subject.title}\n\n{table(header, rows)}")
        failures += [scenario for scenario, cells in matrix.items() if not cells["ours"].passes]
    names = [name for subject in SUBJECTS for name in subject.adapters]
    parts.append(f"✓ as it should be, ✗ not, · does not apply. {versions(names)}.\n")
    publish("conformance", "Conformance", "\n".join(parts))
    for scenario in failures:
        print(f"ours fails: {scenario}", file=sys.stderr)
    return 1 if failures else 0


def run_matrix(subject: Subject) -> dict[str, dict[str, Cell]]:
    """Run every scenario with every library, each on a clock of its own."""
    return {
        title: {
            name: run_cell(scenario, make, subject.packages.get(name, name))
            for name, make in subject.adapters.items()
        }
        for title, scenario in subject.scenarios.items()
    }


def run_cell(scenario: Callable[..., Any], make: Callable[..., Any], package: str) -> Cell:
    """Run one scenario; a library that cannot be run says why."""

    async def cell(time: VirtualTime) -> Cell:
        return await scenario(make, time)

    # Loaded before the clock is replaced, in every module that has bound it.
    with contextlib.suppress(ImportError):
        importlib.import_module(package)
    random.seed(0)
    try:
        return virtual_time.run(cell, package.partition(".")[0])
    except Exception as error:  # whatever it is, it is this cell's result
        return Cell(f"did not run: {type(error).__name__}: {error}", None)


if __name__ == "__main__":
    sys.exit(main())
