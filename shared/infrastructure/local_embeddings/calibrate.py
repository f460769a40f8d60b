"""Measure how many tokens a forward pass should hold on this machine, and remember it.

`python -m shared.infrastructure.local_embeddings.calibrate MODEL --backend onnx` runs the same
texts in passes of several sizes, and chooses the smallest that is as good as the best: a short
call waits less behind small passes. Whoever loads the model later finds the choice in the cache.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from shared.infrastructure.local_embeddings.backends import EmbeddingBackend, open_backend
from shared.infrastructure.local_embeddings.batching import Rows, plan_passes
from shared.infrastructure.local_embeddings.calibration import CalibrationKey, save_calibration
from shared.infrastructure.local_embeddings.config import (
    Dtype,
    LocalEmbeddingConfig,
    ModelBackend,
    TokenizeOptions,
)
from shared.infrastructure.local_embeddings.devices import usable_cpus
from shared.infrastructure.local_embeddings.limits import limits_of
from shared.infrastructure.local_embeddings.memory.governor import MemoryGovernor
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import ConfigurationError, ServiceError

CPU_BUDGETS = (64, 128, 256, 512, 1024, 2048, 4096)
CUDA_BUDGETS = (4096, 8192, 16384, 32768, 65536)

# Most texts are short, and most tokens are in the long ones: of ten texts, words of each.
_MIX = (6, 8, 10, 12, 14, 18, 40, 60, 80, 250)
_ROUNDS = 5
_PATIENCE = 90.0  # seconds after which no round is begun, once there are `_FEWEST`
_FEWEST = 3
_TOLERANCE = 0.02
_NOISY = 1.25


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast passes of one size were.

    Attributes:
        batch_tokens: Tokens in a pass at most.
        rates: Tokens a second in each round, padding not counted.
    """

    batch_tokens: int
    rates: tuple[float, ...]

    @property
    def median(self) -> float:
        """Tokens a second in the median round."""
        return statistics.median(self.rates)

    @property
    def is_noisy(self) -> bool:
        """Whether rounds differ so much that something else must have kept the machine busy."""
        return max(self.rates) > _NOISY * min(self.rates)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What calibrating has found.

    Attributes:
        speeds: How fast passes of each size were.
        chosen: The one that is kept.
        path: Where it is kept.
    """

    speeds: tuple[Speed, ...]
    chosen: Speed
    path: Path

    @property
    def is_noisy(self) -> bool:
        """Whether something else must have kept the machine busy."""
        return any(speed.is_noisy for speed in self.speeds)

    def report(self) -> str:
        """Return it as lines of text."""
        lines = [f"{'tokens a pass':>13}  {'tokens/s':>12}  of all rounds"]
        lines += [
            f"{speed.batch_tokens:>13,}  {speed.median:>12,.0f}  "
            f"{min(speed.rates):,.0f} to {max(speed.rates):,.0f}"
            for speed in self.speeds
        ]
        lines += ["", f"{self.chosen.batch_tokens} tokens a pass, kept in {self.path}"]
        if self.is_noisy:
            lines.append("Rounds differ widely: run this again when the machine is idle.")
        return "\n".join(lines) + "\n"


def measure(
    backend: EmbeddingBackend,
    budgets: Sequence[int],
    *,
    max_rows: int,
    workers: int = 1,
    clock: Clock = MONOTONIC,
) -> list[Speed]:
    """Run a mix of short and long texts in passes of each size, one size after another.

    Every size has its turn in each round, so that a noisy moment falls on all of them; a first
    round is not counted.

    Args:
        backend: The model.
        budgets: Tokens in a pass at most, of each size.
        max_rows: Texts in a pass at most.
        workers: Threads that run passes at the same time.
        clock: Measures them.
    """
    tokens = _texts(backend, max(budgets))
    rates: dict[int, list[float]] = {budget: [] for budget in budgets}
    started = clock.now()
    with ThreadPoolExecutor(workers) as pool:
        for number in range(_ROUNDS + 1):
            for budget, seen in rates.items():
                began = clock.now()
                _run(backend, tokens, _passes(backend, tokens, max_rows, budget), pool, workers)
                if number:
                    seen.append(len(tokens.ids) / (clock.now() - began))
            if number >= _FEWEST and clock.now() - started > _PATIENCE:
                break
    return [Speed(budget, tuple(seen)) for budget, seen in rates.items()]


def choose(speeds: Sequence[Speed]) -> Speed:
    """Return the smallest pass that is within 2 % of the fastest."""
    best = max(speed.median for speed in speeds)
    good = [speed for speed in speeds if speed.median >= (1 - _TOLERANCE) * best]
    return min(good, key=lambda speed: speed.batch_tokens)


def _texts(backend: EmbeddingBackend, largest: int) -> TokenBatch:
    """Return the mix, at least twice as many tokens as the largest pass holds."""
    texts = ["word " * count for count in _MIX]
    ten = backend.tokenize(texts, TokenizeOptions())
    return TokenBatch.joined([ten] * (1 + 2 * largest // len(ten.ids)))


def _passes(
    backend: EmbeddingBackend, tokens: TokenBatch, max_rows: int, budget: int
) -> Iterator[Rows]:
    return plan_passes(
        tokens.lengths,
        max_rows=max_rows,
        max_tokens=lambda: budget,
        packed=backend.spec.packed,
    )


def _run(
    backend: EmbeddingBackend,
    tokens: TokenBatch,
    passes: Iterator[Rows],
    pool: ThreadPoolExecutor,
    workers: int,
) -> None:
    taking = threading.Lock()

    def work() -> None:
        while True:
            with taking:
                rows = next(passes, None)
            if rows is None:
                return
            out = np.empty((len(rows), backend.spec.dimension), np.float32)
            backend.forward(tokens.select(rows), out)

    for worker in [pool.submit(work) for _ in range(workers)]:
        worker.result()


def calibrate(config: LocalEmbeddingConfig, workers: int = 1) -> Calibration:
    """Load a model, measure passes of several sizes, and keep the choice in `config.cache_dir`.

    Args:
        config: The model; `threads` are those of one pass.
        workers: Passes at the same time.

    Raises:
        ConfigurationError: The backend runs only one pass at a time.
        ServiceError: The model cannot be loaded.
    """
    threads = config.threads or max(1, usable_cpus() // workers)
    config = config.model_copy(update={"threads": threads})
    with contextlib.closing(open_backend(config)) as backend:
        spec = backend.spec
        if workers > 1 and not spec.concurrent:
            raise ConfigurationError(f"{config.backend} runs one pass at a time: --workers 1")
        budgets = CPU_BUDGETS if spec.device == "cpu" else CUDA_BUDGETS
        max_rows = limits_of(config, spec, MemoryGovernor()).max_rows
        speeds = measure(backend, budgets, max_rows=max_rows, workers=workers)
        chosen = choose(speeds)
        key = CalibrationKey(
            spec.fingerprint, config.backend.value, spec.device, spec.dtype, threads
        )
        path = save_calibration(config.cache_dir, key, chosen.batch_tokens)
    return Calibration(tuple(speeds), chosen, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    options = _parse(arguments)
    config = LocalEmbeddingConfig(
        model_name=options.model,
        backend=options.backend,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        cache_dir=options.cache_dir,
    )
    try:
        found = calibrate(config, options.workers)
    except ServiceError as error:
        sys.stderr.write(f"calibrate: {error}\n")
        return 1
    sys.stdout.write(found.report())
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure how many tokens a forward pass should hold on this machine."
    )
    parser.add_argument("model", help="model directory, package:NAME or hub name")
    parser.add_argument("--backend", type=ModelBackend, default=ModelBackend.ONNX)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="float32")
    parser.add_argument("--workers", type=int, default=1, help="passes at the same time")
    parser.add_argument("--threads", type=int, help="of a pass; default: CPUs for each worker")
    parser.add_argument("--cache-dir", type=Path, help="default: ~/.cache/morgan-sdk")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
