"""Measure what a call to a pool of LLM hosts costs: `python -m benchmarks.llm_router`.

Three hosts have one core, the clients another; each client is a process of its own, and in every
round each has its turn. What counts is processor time of the client, and how much later the first
token comes.
"""

import argparse
import os
import signal
import statistics
import sys
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import llm_router_chat, llm_router_stream
from benchmarks.http_client import Worker, installed, measure, workers
from benchmarks.http_sections import Section
from benchmarks.http_server import Target
from benchmarks.llm_router_stub import hosts
from benchmarks.llm_router_worker import RouterFigures
from benchmarks.report import Cell, publish, publish_data, table

ROUNDS, QUICK = 7, 2
ROUTER = "litellm Router, 3 hosts"
STREAM_PIECES = llm_router_stream.PIECES["/stream"]

Results = dict[tuple[str, int], list[RouterFigures | None]]


class RouterWorker(Worker):
    """A client that also tells of first tokens, memory, and what it took to be ready."""

    module = "benchmarks.llm_router_worker"
    figures = RouterFigures


class Bar(NamedTuple):
    """What is asked of ours beside a peer; None only compares.

    Attributes:
        ours: Our client.
        peer: The other one.
        most: Most of the ratio, or of the difference.
        is_ratio: Which of the two.
    """

    ours: str
    peer: str
    most: float | None
    is_ratio: bool = True


CHAT = Section(
    title="A chat, whole",
    module="benchmarks.llm_router_chat",
    arms=tuple(llm_router_chat.ARMS),
    path=llm_router_chat.PATH,
    seconds=dict.fromkeys((1, 10, 100), 0.25),
    bars=[],
)
STREAM = Section(
    title=f"A chat, streamed in {STREAM_PIECES} pieces",
    module="benchmarks.llm_router_stream",
    arms=tuple(llm_router_stream.ARMS),
    path="/stream",
    seconds={5: 0.5},
    bars=[],
)
FIRST = STREAM._replace(
    title="The first token",
    arms=tuple(arm for arm in llm_router_stream.ARMS if "bytes" not in arm),
    path="/first",
    seconds={1: 0.3},
)
CHAT_BARS = [
    Bar("ours, chat", "openai", 0.6),
    Bar("ours, chat", ROUTER, 1 / 6),
    Bar("ours, post", ROUTER, 1 / 8),
    Bar("ours, post", "EnhancedHTTPClient", 20.0, is_ratio=False),
    Bar("ours, chat", "EnhancedHTTPClient", None, is_ratio=False),
    Bar("ours, post", "httpx", None, is_ratio=False),
    Bar("openai on ours", "openai", None),
]
STREAM_BARS = [
    Bar("ours, stream", "httpx, JSON", 10.0, is_ratio=False),
    Bar("ours, open, JSON", "httpx, JSON", 10.0, is_ratio=False),
    Bar("ours, open, bytes", "httpx, bytes", 10.0, is_ratio=False),
    Bar("ours, stream", "httpx + our wire, JSON", None, is_ratio=False),
    Bar("ours, open, bytes", "httpx + our wire, bytes", None, is_ratio=False),
    Bar("ours, stream", "openai", None),
    Bar("ours, stream", ROUTER, None),
]
FIRST_BARS = [
    Bar("ours, stream", "httpx, JSON", 0.2, is_ratio=False),
    Bar("ours, stream", "httpx + our wire, JSON", 0.2, is_ratio=False),
    Bar("ours, open, JSON", "httpx + our wire, JSON", 0.2, is_ratio=False),
    Bar("openai on ours", "openai", None, is_ratio=False),
]

Value = Callable[[RouterFigures], float]


def _cpu(figures: RouterFigures) -> float:
    return figures.cpu


def _cpu_of_a_piece(figures: RouterFigures) -> float:
    return figures.cpu / STREAM_PIECES


def _first(figures: RouterFigures) -> float:
    return figures.first if figures.first is not None else figures.p50


def figures_table(section: Section, results: Results, value: Value, unit: str) -> str:
    """Return the medians of all clients."""
    rows = []
    for arm in section.arms:
        cells: list[object] = []
        for concurrency in section.seconds:
            ran = [figures for figures in results[arm, concurrency] if figures]
            if not ran:
                cells.append("did not run")
                continue
            median = statistics.median(map(value, ran))
            rate = statistics.median(figures.rate for figures in ran)
            cells.append(f"**{_short(median)}** {unit}; {rate:,.0f}/s")
        rows.append([arm, *cells])
    return table(["", *(f"{c:,} at a time" for c in section.seconds)], rows)


def bars_table(section: Section, results: Results, bars: list[Bar], value: Value, unit: str) -> str:
    """Return how ours compares, with the verdict where there is a bar."""
    rows = []
    for bar in bars:
        if not {bar.ours, bar.peer} <= set(section.arms):
            continue
        cells: list[object] = [f"{bar.ours} {'/' if bar.is_ratio else '-'} {bar.peer}"]
        for concurrency in section.seconds:
            pairs = zip(results[bar.ours, concurrency], results[bar.peer, concurrency], strict=True)
            seen = [
                value(one) / value(other) if bar.is_ratio else value(one) - value(other)
                for one, other in pairs
                if one and other
            ]
            cells.append(_verdict(seen, bar.most, "" if bar.is_ratio else f" {unit}"))
        rows.append(cells)
    return table(["", *(f"{c:,} at a time" for c in section.seconds)], rows) if rows else ""


def _verdict(seen: list[float], most: float | None, unit: str) -> object:
    if not seen:
        return "did not run"
    median = statistics.median(seen)
    text = f"{_short(median)}{unit} ({_short(min(seen))} to {_short(max(seen))})"
    return Cell(text, None) if most is None else Cell(f"{text}; ≤ {most:.3g}", median <= most)


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def start_table(results: Results) -> str:
    """Return what it takes to be ready for the first request, and the memory at the end."""
    rows = []
    for (arm, concurrency), seen in results.items():
        if concurrency == 1 and (ran := [figures for figures in seen if figures]):
            rows.append([arm, f"{ran[-1].ready:,.0f} ms", f"{ran[-1].memory:,.0f} MB"])
    return table(["", "processor time until ready", "resident memory"], rows)


class Part(NamedTuple):
    """A section, what is read from it, and what is asked of that."""

    section: Section
    bars: list[Bar]
    value: Value
    unit: str


PARTS = [
    Part(CHAT, CHAT_BARS, _cpu, "µs"),
    Part(STREAM, STREAM_BARS, _cpu_of_a_piece, "µs"),
    Part(FIRST, FIRST_BARS, _first, "ms"),
]


def run(
    part: Part, target: Target, core: int, *, is_quick: bool
) -> tuple[list[str], dict[str, object]]:
    """Return what a section has shown, in words and as data."""
    section = part.section
    if is_quick:
        section = section._replace(seconds={c: s / 2 for c, s in section.seconds.items()})
    with workers(section, target, core, RouterWorker) as made:
        results: Results = measure(section, made, QUICK if is_quick else ROUNDS)
        parts = [
            f"## {section.title}\n",
            figures_table(section, results, part.value, part.unit),
            bars_table(section, results, part.bars, part.value, part.unit),
        ]
        if section.path == CHAT.path:
            parts += ["### To begin with\n", start_table(results)]
        if failed := [f"- {arm} {error}" for arm in made for error in made[arm].errors]:
            parts += ["What went wrong:\n", "\n".join(failed) + "\n"]
    data = {
        f"{arm}, {concurrency} at a time": [f._asdict() for f in seen if f]
        for (arm, concurrency), seen in results.items()
    }
    return parts, {section.title: data}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what a call to a pool costs.")
    parser.add_argument("--quick", action="store_true", help="two short rounds, to try it out")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="take only these clients")
    parser.add_argument("--parts", nargs="+", metavar="N", type=int, help="1, 2, 3: these parts")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        print("benchmarks.llm_router is skipped: it needs Linux, and two processor cores")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parts = [INTRODUCTION.format(rounds=QUICK if options.quick else ROUNDS)]
    data: dict[str, object] = {}
    with hosts(core=cores[0]) as target:
        for number, part in enumerate(PARTS, 1):
            if number not in (options.parts or (1, 2, 3)):
                continue
            arms = tuple(a for a in part.section.arms if a in (options.arms or part.section.arms))
            taken = part._replace(section=part.section._replace(arms=arms))
            text, seen = run(taken, target, cores[-1], is_quick=options.quick)
            parts += text
            data |= seen
    parts.append(installed())
    is_whole = not (options.quick or options.arms or options.parts)
    publish(
        "llm_router", "Cost of a call to LLM hosts", "\n".join(filter(None, parts)), keep=is_whole
    )
    if is_whole:
        publish_data("llm_router", data)
    return 0


INTRODUCTION = """\
Medians of {rounds} interleaved rounds against three hosts on the loopback. In bold, microseconds of
processor time that a call, or a piece of a stream, costs the process of its client, or milliseconds
to the first content; then calls a second. Below, ratios and differences: the median of those of
each round, their range, and what is asked of ours.
"""

if __name__ == "__main__":
    sys.exit(main())
