"""What `http_client` has measured, in tables."""

import math
import statistics

from benchmarks.http_sections import Section
from benchmarks.http_worker import Figures
from benchmarks.report import Cell, table

FLAT = 1.5  # at 1,000 concurrent requests, of what one costs at 10
MOST_P99 = 115.0  # milliseconds, where the service takes 100

Results = dict[tuple[str, int], list[Figures | None]]
"""By client and concurrency, what each round has shown; None where the client has failed."""


def figures_table(section: Section, results: Results) -> str:
    """Return the medians of all clients."""
    rows = [
        [arm, *(_figures(results[arm, concurrency]) for concurrency in section.seconds)]
        for arm in section.arms
    ]
    return table(["", *(f"{c:,} at a time" for c in section.seconds)], rows)


def _figures(seen: list[Figures | None]) -> str:
    ran = [figures for figures in seen if figures is not None]
    if not ran:
        return "did not run"
    cpu, rate, p50, p99 = (statistics.median(values) for values in zip(*ran, strict=True))
    return f"**{cpu:,.0f}** µs; {rate:,.0f}/s; {_ms(p50)}, {_ms(p99)} ms"


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def bars_table(section: Section, results: Results) -> str:
    """Return how ours compares, with the verdict on each ratio that has a bar."""
    rows = []
    for bar in section.bars:
        if not {bar.ours, bar.peer} <= set(section.arms):
            continue
        cells: list[object] = [f"{bar.ours} / {bar.peer}"]
        for concurrency in section.seconds:
            ratios = _ratios(results, (bar.ours, concurrency), (bar.peer, concurrency))
            cells.append(_verdict(ratios, bar.most.get(concurrency)))
        rows.append(cells)
    return table(["", *(f"{c:,} at a time" for c in section.seconds)], rows) if rows else ""


def flat_table(section: Section, results: Results) -> str:
    """Return whether a request costs the same however many there are at a time."""
    rows = []
    for arm in section.arms:
        ratios = _ratios(results, (arm, 1_000), (arm, 10))
        rows.append([arm, _verdict(ratios, FLAT if arm.startswith("ours on") else None)])
    return table(["", "1,000 / 10 at a time"], rows)


def p99_table(results: Results) -> str:
    """Return how long the slowest hundredth of requests takes."""
    rows: list[list[object]] = []
    for (arm, _), seen in results.items():
        slowest = [figures.p99 for figures in seen if figures is not None]
        p99 = statistics.median(slowest) if slowest else math.inf
        passes = p99 <= MOST_P99 if arm.startswith("ours on") else None
        rows.append([arm, Cell(f"{p99:.0f} ms", passes)])
    return table(["", f"p99 (ours ≤ {MOST_P99:.0f} ms)"], rows)


def _ratios(results: Results, ours: tuple[str, int], peer: tuple[str, int]) -> list[float]:
    pairs = zip(results.get(ours, []), results.get(peer, []), strict=False)
    return [one.cpu / other.cpu for one, other in pairs if one and other]


def _verdict(ratios: list[float], most: float | None) -> object:
    if not ratios:
        return "did not run"
    median = statistics.median(ratios)
    spread = f"{median:.3f} ({min(ratios):.2f} to {max(ratios):.2f})"
    if most is None:
        return Cell(spread, None)
    return Cell(f"{spread}; ≤ {most:g}", median <= most)
