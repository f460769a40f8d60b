"""What `embedding_server` has measured, in tables, and whether the bars are met."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.embedding_server_contenders import (
    BF16,
    CONSTANT,
    INFINITY,
    INFINITY_BF16,
    OURS,
    UNBATCHED,
    WORKERS,
)
from benchmarks.embedding_tables import FEWEST, Ratio
from benchmarks.report import Cell, table

MANY, ONE, REPEATED = "64 clients", "1 client", "64 clients, repeated texts"
HUNDRED, OPEN = "100 clients", "70 % of capacity, open loop"
LOOP = "onnxruntime alone"
MOST_OTHERS = 0.08
"""Share of the processors that others may use before a turn is void."""
MOST_GENERATOR = {REPEATED: 0.7}
"""Share of one processor that the generator may use before a turn is void; else 0.1."""
LATEST = 0.01
"""Seconds by which 1 % of the requests of an open loop may be sent late before it is void."""
LEAST_COSINE = {BF16: 0.999, INFINITY_BF16: 0.999}
"""Of vectors to those of sentence-transformers in float32; else 0.99999."""


class Turn(NamedTuple):
    """One turn of a contender. Latencies are milliseconds of good answers.

    Attributes:
        rate: Good answers a second.
        failed: Answers that were not good.
        cpu: Processor milliseconds of the server for an answer.
        generator: Share of one processor that the generator has used.
        others: Share of all processors that anybody else has used.
        late: By how many seconds 99 % of the requests were sent late at most.
        rows: Texts of a batch, on average, if the server says so.
        length: Tokens of a text in a batch, padding included, on average; the same.
    """

    rate: float
    p50: float
    p95: float
    p99: float
    failed: int = 0
    cpu: float = 0.0
    generator: float = 0.0
    others: float = 0.0
    late: float = 0.0
    rows: float = 0.0
    length: float = 0.0


Results = Mapping[tuple[str, str], Sequence[Turn | None]]
"""By case and contender, its turn in each round; None where it had none, or has failed."""
Figure = Callable[[Turn], float]


class Bar(NamedTuple):
    """What is asked of a figure of ours, as a ratio to a peer's, or as it is.

    Attributes:
        question: What is compared.
        case: Under which load.
        ours: The contender of ours.
        peer: Case and contender it is compared with; none for a figure as it is.
        figure: What of it.
        least: Smallest value that is good enough; None if `most` says which.
        most: Largest value that is; neither only compares.
    """

    question: str
    case: str
    ours: str
    peer: tuple[str, str] | None
    figure: Figure
    least: float | None = None
    most: float | None = None


def rate(turn: Turn) -> float:
    return turn.rate


def p50(turn: Turn) -> float:
    return turn.p50


def p99(turn: Turn) -> float:
    return turn.p99


BARS = [
    Bar("requests/s", MANY, OURS, (MANY, INFINITY), rate, least=3.0),
    Bar("requests/s", MANY, OURS, (MANY, INFINITY_BF16), rate, least=2.0),
    Bar("requests/s", MANY, BF16, (MANY, INFINITY_BF16), rate, least=2.3),
    Bar("p99", MANY, OURS, (MANY, INFINITY), p99, most=0.35),
    Bar("p99", MANY, OURS, (MANY, INFINITY_BF16), p99, most=0.35),
    Bar("p99", MANY, BF16, (MANY, INFINITY_BF16), p99),
    Bar("p50", ONE, OURS, (ONE, INFINITY), p50, most=0.3),
    Bar("p50", ONE, BF16, (ONE, INFINITY_BF16), p50),
    Bar("requests/s", REPEATED, OURS, (REPEATED, CONSTANT), rate, least=4.0),
    Bar("tokens/s", MANY, OURS, (MANY, LOOP), rate, least=0.85),
    Bar("requests/s", MANY, OURS, (MANY, UNBATCHED), rate),
    Bar("requests/s", MANY, OURS, (MANY, WORKERS), rate),
    Bar("p99, ms", HUNDRED, OURS, None, p99, most=250),
    Bar("p99, ms", HUNDRED, BF16, None, p99, most=250),
    Bar("p99, ms", OPEN, OURS, None, p99, most=250),
]


def is_valid(case: str, turn: Turn) -> bool:
    """Tell whether neither others nor the generator itself have spoilt a turn."""
    return (
        turn.others <= MOST_OTHERS
        and turn.generator <= MOST_GENERATOR.get(case, 0.1)
        and turn.late <= LATEST
    )


def bars_table(results: Results) -> str:
    """Return each bar, what was measured, and whether it is met."""
    header = ("", "load", "ours / peer", "asked", "measured", "by CPU time")
    return table(header, [row for bar in BARS if (row := _bar(results, bar))])


def _bar(results: Results, bar: Bar) -> list[object]:
    found = compared(results, bar)
    if found is None:
        return []
    verdict = asked = None
    if bar.least is not None:
        asked, verdict = f"≥ {bar.least:g}", found.median >= bar.least
    elif bar.most is not None:
        asked, verdict = f"≤ {bar.most:g}", found.median <= bar.most
    pair = f"{bar.ours} / {bar.peer[1]}" if bar.peer else bar.ours
    said = f"{found.median:.3g} ({found.lowest:.3g} to {found.highest:.3g})"
    cell = Cell(said, verdict if found.is_valid else None)
    # A request's CPU time is the less, the faster: turned round it compares with rates.
    by_cpu = compared(results, bar, lambda turn: 1 / turn.cpu) if bar.figure is rate else None
    return [bar.question, bar.case, pair, asked or "", cell, by_cpu or ""]


def compared(results: Results, bar: Bar, figure: Figure | None = None) -> Ratio | None:
    """Return a figure of each round that counts, as a ratio to the peer's if there is one."""
    case, peer, figure = bar.case, bar.peer, figure or bar.figure
    mine = results.get((case, bar.ours), ())
    theirs = results.get(peer, ()) if peer else mine
    pairs = [
        (one, other)
        for one, other in zip(mine, theirs, strict=False)
        if one is not None and other is not None
    ]
    valid = [pair for pair in pairs if all(is_valid(case, turn) for turn in pair)]
    if len(valid) >= min(FEWEST, len(pairs)):
        pairs = valid
    if not pairs:
        return None
    values = [figure(one) / (figure(other) if peer else 1.0) for one, other in pairs]
    is_clean = len(valid) == len(pairs)
    return Ratio(statistics.median(values), min(values), max(values), len(values), is_clean)


def figures_table(results: Results) -> str:
    """Return the medians of all contenders under each load."""
    header = (
        *("load", "", "requests/s", "of all rounds", "p50, ms", "p95", "p99", "CPU, ms a request"),
        *("texts a batch", "generator's CPU", "others' CPU", "rounds"),
    )
    return table(header, [_figures(*key, turns) for key, turns in results.items()])


def _figures(case: str, arm: str, turns: Sequence[Turn | None]) -> list[object]:
    taken = [turn for turn in turns if turn is not None]
    if not taken:
        return [case, arm, "did not run", *[""] * 9]
    valid = [turn for turn in taken if is_valid(case, turn)]
    kept = valid if len(valid) >= min(FEWEST, len(taken)) else taken
    rates = [turn.rate for turn in kept]
    failed = sum(turn.failed for turn in taken)
    disturbed = len(taken) - len(valid)
    notes = [f"{disturbed} disturbed"] * bool(disturbed) + [f"{failed} failed"] * bool(failed)

    def median(figure: Figure) -> float:
        return statistics.median(map(figure, kept))

    rows = median(lambda turn: turn.rows)
    return [
        case,
        arm,
        f"**{statistics.median(rates):,.0f}**",
        f"{min(rates):,.0f} to {max(rates):,.0f}",
        *(f"{median(figure):.1f}" if median(figure) else "" for figure in _LATENCIES),
        f"{median(lambda turn: turn.cpu):.2f}",
        f"{rows:.1f}" if rows else "",
        f"{median(lambda turn: turn.generator):.1%}",
        f"{median(lambda turn: turn.others):.1%}",
        "; ".join([str(len(kept)), *notes]),
    ]


_LATENCIES: tuple[Figure, ...] = (p50, lambda turn: turn.p95, p99)


def vectors_table(cosines: Mapping[str, float]) -> str:
    """Return how far the vectors of each contender are from those of sentence-transformers."""
    rows = [
        [
            arm,
            f"≥ {(least := LEAST_COSINE.get(arm, 0.99999))}",
            Cell(f"{cosine:.6f}", cosine >= least),
        ]
        for arm, cosine in cosines.items()
    ]
    return table(("same vectors", "asked", "least cosine"), rows)
