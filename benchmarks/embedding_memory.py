"""Load, embed and unload, again and again: `python -m benchmarks.embedding_memory`.

Each series is a process of its own. After each unload it notes how much memory it has resident.
"""

import argparse
import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.embedding_tiny import write_tiny_model
from benchmarks.report import Cell, publish, publish_data, table
from shared.infrastructure.local_embeddings import (
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    ModelBackend,
)

ROOT = Path(__file__).resolve().parent.parent
REAL = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = ["cat", "a text of a few words", "word " * 60, "日本語のテキスト"]

TINY_CYCLES, REAL_CYCLES = 10_000, 20
QUICK_TINY_CYCLES, QUICK_REAL_CYCLES = 300, 4
PATIENCE = 60.0  # seconds for the tiny model under a backend that loads slowly
MOST_DRIFT = 0.05


class Series(NamedTuple):
    """Resident memory after each cycle.

    Attributes:
        backend: Library that ran the model.
        model: `tiny` or `real`.
        megabytes: Of each cycle.
        seconds: How long all took.
    """

    backend: str
    model: str
    megabytes: list[float]
    seconds: float


class Drift(NamedTuple):
    """How memory went on after the first cycles, MB.

    Attributes:
        start: Once it was warm: the median of the cycles that follow the first hundredth.
        end: Median of the last hundredth.
        most: Of any cycle after the first hundredth.
        kilobytes_per_cycle: Slope of the line that fits best.
    """

    start: float
    end: float
    most: float
    kilobytes_per_cycle: float

    @property
    def growth(self) -> float:
        """Megabytes more at the end than at the start."""
        return self.end - self.start

    @property
    def relative(self) -> float:
        """The growth as a part of what there was at the start."""
        return self.end / self.start - 1


def drift(megabytes: list[float]) -> Drift:
    """Return how memory went on; the first hundredth of the cycles, or two, only warm up."""
    part = max(2, len(megabytes) // 100)
    warm = megabytes[part:]
    slope = float(np.polyfit(np.arange(len(warm)), warm, 1)[0]) if len(warm) > 1 else 0.0
    return Drift(
        statistics.median(warm[:part]), statistics.median(warm[-part:]), max(warm), 1024 * slope
    )


def measured(
    backend: ModelBackend,
    model: str,
    cycles: int,
    directory: Path,
    *,
    patience: float = 1e9,
    environment: Mapping[str, str] | None = None,
) -> Series:
    """Run a series in a process of its own.

    Args:
        backend: Library that runs the model.
        model: Name or directory.
        cycles: How many, at most.
        directory: Where the graphs that are built are kept.
        patience: Seconds after which no cycle is begun.
        environment: Variables of the process, beside those of this one.
    """
    command = [sys.executable, "-m", "benchmarks.embedding_memory", "--series"]
    command += [backend.value, model, str(cycles), str(directory), str(patience)]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    variables |= environment or {}
    done = subprocess.run(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, check=True
    )
    return Series(**json.loads(done.stdout))


async def cycle_through(config: LocalEmbeddingConfig, cycles: int, patience: float) -> list[float]:
    megabytes: list[float] = []
    until = time.monotonic() + patience
    model = LocalEmbeddingModel(config)
    while len(megabytes) < cycles and time.monotonic() < until:
        # Every model lives twice: what a reload leaves behind shows, and what a model does.
        if len(megabytes) % 2:
            model = LocalEmbeddingModel(config)
        await model.load()
        await model.embed(TEXTS)
        await model.unload()
        megabytes.append(resident_megabytes())
    return megabytes


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def run_series(backend: str, model: str, cycles: str, cache: str, patience: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    config = LocalEmbeddingConfig(model_name=model, backend=backend, device="cpu", cache_dir=cache)
    began = time.monotonic()
    megabytes = asyncio.run(cycle_through(config, int(cycles), float(patience)))
    name = "real" if model == REAL else "tiny"
    series = Series(backend, name, megabytes, time.monotonic() - began)
    print(json.dumps(series._asdict()), file=answers, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Load, embed and unload, again and again.")
    parser.add_argument("--quick", action="store_true", help="few cycles, nothing is written")
    parser.add_argument(
        "--backends", nargs="+", type=ModelBackend, default=list(ModelBackend), metavar="NAME"
    )
    parser.add_argument("--series", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.series:
        run_series(*options.series)
        return 0
    tiny_cycles = QUICK_TINY_CYCLES if options.quick else TINY_CYCLES
    real_cycles = QUICK_REAL_CYCLES if options.quick else REAL_CYCLES
    found: list[Series] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tiny = write_tiny_model(directory / "tiny")
        for backend in options.backends:
            patience = 1e9 if backend is ModelBackend.ONNX else PATIENCE
            found += [
                measured(backend, str(tiny), tiny_cycles, directory / "cache", patience=patience),
                measured(backend, REAL, real_cycles, directory / "cache"),
            ]
    is_whole = not options.quick and options.backends == list(ModelBackend)
    publish("embedding_memory", "Memory of a model", INTRODUCTION + _table(found), keep=is_whole)
    if is_whole:
        publish_data("embedding_memory", {"series": [_thinned(series) for series in found]})
    return 0 if all(abs(drift(s.megabytes).relative) <= MOST_DRIFT for s in found) else 1


def _table(found: list[Series]) -> str:
    rows = []
    for series in found:
        seen = drift(series.megabytes)
        passes = abs(seen.relative) <= MOST_DRIFT
        rows.append(
            [
                f"{series.backend}, {series.model}",
                f"{len(series.megabytes):,} in {series.seconds:,.0f} s",
                *(f"{value:,.1f}" for value in (seen.start, seen.end, seen.most)),
                f"{seen.kilobytes_per_cycle:+.2f}",
                Cell(f"{seen.relative:+.1%}; ± {MOST_DRIFT:.0%}", passes),
            ]
        )
    header = ("", "cycles", "start, MB", "end, MB", "most, MB", "kB a cycle", "end / start")
    return table(header, rows)


def _thinned(series: Series) -> dict[str, object]:
    """Keep a hundred values or so: enough to see the shape."""
    step = max(1, len(series.megabytes) // 100)
    values = [round(value, 2) for value in series.megabytes[::step]]
    every = {"megabytes": values, "every": step, "cycles": len(series.megabytes)}
    return series._asdict() | every | drift(series.megabytes)._asdict()


INTRODUCTION = """\
Resident memory of a process that loads a model, embeds four texts, and unloads it, after each
unload. *Tiny* has two layers 32 wide and random weights, *real* is all-MiniLM-L6-v2. The first
hundredth of the cycles, and at least two, is left out.

"""

if __name__ == "__main__":
    sys.exit(main())
