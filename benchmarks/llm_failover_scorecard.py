"""Let clients meet every scenario of the fault wall: `python -m benchmarks.llm_failover_scorecard`.

It writes `docs/design/llm-failover-scorecard.md`. The exit status is 1 if ours misses a bar.
"""

import argparse
import asyncio
import gc
import sys
from pathlib import Path

from benchmarks.report import Cell, table
from tests.wall.llm_cell import least, run, settled
from tests.wall.llm_hosts import Pace
from tests.wall.llm_scenarios import SCENARIOS, Mark, Scenario
from tests.wall.llm_ways import CARELESS, OPENAI_STREAMS, OURS, Way

PAGE = Path(__file__).resolve().parent.parent / "docs" / "design" / "llm-failover-scorecard.md"
WAYS = [*OURS, *OPENAI_STREAMS, *CARELESS]


async def cell_of(scenario: Scenario, way: Way) -> Cell:
    """Return the worst of what came of it alone and in a crowd, at two hosts and at three."""
    sizes = [[(2, 1), (3, 1)], [(2, scenario.crowd), (3, scenario.crowd)]]
    taken = [size for size in sizes if size[0][1]]
    if way in CARELESS:
        seen = [await run(scenario, way, size, Pace()) for size in taken]
    else:
        seen = [await settled(scenario, way, size) for size in taken]
    worst = min(cell.worst for cell in seen)
    left = [what for cell in seen for what in cell.left]
    text = worst.name.lower() + (", leaks" if left else "")
    if way in CARELESS:
        return Cell(text, None)
    passes = worst >= least(scenario, way) and not left
    if not passes:
        print(f"{scenario.name}: {way.name}: {seen[-1]}", file=sys.stderr)
    return Cell(text, passes)


async def measure() -> dict[str, list[Cell]]:
    results: dict[str, list[Cell]] = {}
    for scenario in SCENARIOS:
        results[scenario.name] = [await cell_of(scenario, way) for way in WAYS]
        print(scenario.name, *map(str, results[scenario.name]), sep=" | ", file=sys.stderr)
    return results


def count_of(cells: list[Cell]) -> str:
    marks = [cell.text.partition(",")[0] for cell in cells]
    return " / ".join(str(marks.count(mark.name.lower())) for mark in sorted(Mark, reverse=True))


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    gc.collect()
    gc.freeze()
    results = asyncio.run(measure())
    header = ["Scenario", *(way.name for way in WAYS)]
    rows: list[list[object]] = [[name, *cells] for name, cells in results.items()]
    columns = [[cells[number] for cells in results.values()] for number in range(len(WAYS))]
    of_catalogue = [
        [cells[number] for name, cells in results.items() if name < "S17"]
        for number in range(len(WAYS))
    ]
    rows.append(["**S01 to S16**", *map(count_of, of_catalogue)])
    rows.append(["**All**", *map(count_of, columns)])
    PAGE.write_text(PAGE_HEAD + table(header, rows), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))
    failed = any(cell.passes is False for cells in results.values() for cell in cells)
    return 1 if failed else 0


PAGE_HEAD = """\
# Failover: the scorecard

What comes of a call when hosts misbehave. `python -m benchmarks.llm_failover_scorecard` wrote this
page; `tests/wall/test_llm_scenarios.py` makes the same checks, and fails where a ✗ would stand.

Every scenario is met by one client at two hosts and at three, by a single call and by 50 at once;
what stands here is the worst call of all. S01 to S16 restate the faults of the public FailoverBench
catalogue (MIT) for several hosts; the others are ours. Time is scaled: a first token, and the next,
may take 0.4 s.

- *pass*: the whole text of one attempt, with the model and the usage of that attempt, and no more
  attempts than are decent; or the one error that no host could have bettered.
- *partial*: the same text, with something wrong beside it.
- *safe*: a typed error, and what was delivered is the beginning of one attempt.
- *fail*: a hang, an unclean error, or a text that no attempt gave.

A stream that is delivered as it comes cannot be more than *safe* once a part of it is with its
reader, unless a host goes on with it: *continue*. *careless* is a bare httpx client with one retry
at the next host, for comparison. The last rows count pass / partial / safe / fail.

"""

if __name__ == "__main__":
    sys.exit(main())
