"""What `embedding_bulk` has measured, in tables, and whether the bars are met."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.embedding_worker import Turn
from benchmarks.report import Cell, table

MOST_OTHERS = 0.08
"""Share of the processors that others may use before a turn is void."""
FEWEST = 3
"""Turns of a contender that must be valid; if fewer are, the void ones count too."""

Results = Mapping[str, Sequence[Turn | None]]
"""By contender, its turn in each round; None where it had none, or has failed."""


class Bar(NamedTuple):
    """What is asked of one of ours.

    Attributes:
        question: What is compared.
        ours: The contender of ours.
        peer: The contender it is compared with.
        least: Smallest ratio that is good enough; None if `most` says which.
        most: Largest ratio that is.
    """

    question: str
    ours: str
    peer: str
    least: float | None = None
    most: float | None = None


class Ratio(NamedTuple):
    """A ratio of each round: the median, and how far rounds differ.

    Attributes:
        is_valid: Whether no turn behind it was disturbed.
    """

    median: float
    lowest: float
    highest: float
    rounds: int
    is_valid: bool

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} to {self.highest:.2f})"


PEERS = ("onnxruntime, sorted", "light-embed", "libembedding-ng, sorted")
_REFERENCE = "sentence-transformers"
SPEED = [
    *(Bar("ONNX, a model", "ours onnx", peer, least=1.05) for peer in PEERS),
    Bar("ONNX, a model", "ours onnx", _REFERENCE, least=1.7),
    *(Bar("ONNX, a pool", "ours onnx, pool", peer, least=1.05) for peer in PEERS),
    Bar("ONNX, a pool", "ours onnx, pool", _REFERENCE, least=1.7),
    Bar("bf16", "ours transformers bf16", f"{_REFERENCE} bf16", least=1.0),
    Bar("FastEmbed", "ours fastembed", "fastembed", least=4.0),
]
TIME = [Bar("unsorted / sorted, time", "ours onnx", "ours onnx, sorted", most=1.05)]
MEMORY = [
    Bar("peak memory", "ours onnx", _REFERENCE, most=0.5),
    Bar("peak memory", "ours onnx, pool", _REFERENCE, most=0.5),
]
LEAST_COSINE = 0.999999
SAME_VECTORS = ("ours onnx", "ours onnx, pool", "ours transformers", "ours fastembed")


def is_valid(turn: Turn) -> bool:
    return turn.others <= MOST_OTHERS


def counted(turns: Sequence[Turn | None]) -> list[Turn]:
    """Return the turns that count: the valid ones, or all if too few are."""
    taken = [turn for turn in turns if turn is not None]
    valid = [turn for turn in taken if is_valid(turn)]
    return valid if len(valid) >= min(FEWEST, len(taken)) else taken


def ratio(results: Results, ours: str, peer: str, figure: Callable[[Turn], float]) -> Ratio | None:
    """Return how a figure of two contenders compares, within each round that counts for both."""
    pairs = [
        (one, other)
        for one, other in zip(results.get(ours, ()), results.get(peer, ()), strict=False)
        if one is not None and other is not None
    ]
    valid = [pair for pair in pairs if all(map(is_valid, pair))]
    if len(valid) >= min(FEWEST, len(pairs)):
        pairs = valid
    if not pairs:
        return None
    ratios = [figure(one) / figure(other) for one, other in pairs]
    is_clean = len(valid) == len(pairs)
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), len(ratios), is_clean)


def rate(turn: Turn) -> float:
    return turn.texts / turn.seconds


def cpu(turn: Turn) -> float:
    """Return the processor milliseconds of a text."""
    return 1000 * turn.cpu / turn.texts


def figures_table(results: Results) -> str:
    """Return the medians of all contenders."""
    header = (
        "",
        "texts/s",
        "of all rounds",
        "CPU, ms a text",
        "peak, MB",
        "least cosine",
        "rounds",
    )
    return table(header, [_figures(arm, turns) for arm, turns in results.items()])


def _figures(arm: str, turns: Sequence[Turn | None]) -> list[object]:
    taken = counted(turns)
    if not taken:
        return [arm, "did not run", *[""] * 5]
    rates = [rate(turn) for turn in taken]
    busy = sum(not is_valid(turn) for turn in turns if turn)
    return [
        arm,
        f"**{statistics.median(rates):,.0f}**",
        f"{min(rates):,.0f} to {max(rates):,.0f}",
        f"{statistics.median(map(cpu, taken)):.2f}",
        f"{max(turn.peak for turn in taken):,.0f}",
        f"{min(turn.least_cosine for turn in taken):.6f}",
        f"{len(taken)}" + (f"; {busy} disturbed" if busy else ""),
    ]


def bars_table(results: Results) -> str:
    """Return each bar, what was measured, and whether it is met."""
    rows = [_bar(results, bar, rate) for bar in SPEED]
    rows += [_bar(results, bar, lambda turn: turn.seconds / turn.texts) for bar in TIME]
    rows += [_bar(results, bar, lambda turn: turn.peak) for bar in MEMORY]
    rows += [_vectors(results, arm) for arm in SAME_VECTORS]
    header = ("", "ours / peer", "asked", "measured", "by CPU time")
    return table(header, [row for row in rows if row])


def _bar(results: Results, bar: Bar, figure: Callable[[Turn], float]) -> list[object]:
    found = ratio(results, bar.ours, bar.peer, figure)
    if found is None:
        return []
    asked, passes = _verdict(bar, found.median)
    # Who was disturbed was slower than he is; memory is what it is.
    verdict = passes if found.is_valid or bar in MEMORY else None
    # A text's CPU time is the less, the faster: turned round it compares with the ratio of rates.
    by_cpu = ratio(results, bar.peer, bar.ours, cpu) if bar in SPEED else None
    pair = f"{bar.ours} / {bar.peer}"
    return [bar.question, pair, asked, Cell(str(found), verdict), by_cpu or ""]


def _verdict(bar: Bar, median: float) -> tuple[str, bool]:
    if bar.least is not None:
        return f"≥ {bar.least:g}", median >= bar.least
    assert bar.most is not None
    return f"≤ {bar.most:g}", median <= bar.most


def _vectors(results: Results, arm: str) -> list[object]:
    cosines = [turn.least_cosine for turn in results.get(arm, ()) if turn]
    if not cosines:
        return []
    least = min(cosines)
    cell = Cell(f"{least:.7f}", least >= LEAST_COSINE)
    return ["same vectors, least cosine", arm, f"≥ {LEAST_COSINE}", cell, ""]
