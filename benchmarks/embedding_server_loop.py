"""ONNX Runtime alone: our graph and session, a thread a processor, batches as a server had them.

It reads lines of JSON, one `Shape` each, and answers each with the passes it did and how long.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from benchmarks.embedding_contenders import Setup
from benchmarks.embedding_server_contenders import ROOT
from benchmarks.embedding_worker import busy_seconds
from shared.infrastructure.local_embeddings import LocalEmbeddingConfig, ModelBackend
from shared.infrastructure.local_embeddings.backends import onnx
from shared.infrastructure.local_embeddings.devices import Device
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.onnx_encoder.graph import Graph


class Shape(NamedTuple):
    """Batches of a server.

    Attributes:
        rows: Texts of one, on average.
        length: Tokens of each, padding included, on average.
        seconds: How long to repeat them.
    """

    rows: float
    length: float
    seconds: float


class Passes(NamedTuple):
    """What it did with them.

    Attributes:
        texts: Texts of all passes.
        elapsed: Seconds of all passes.
        cpu: Processor seconds of the process meanwhile.
        others: Share of all processors that anybody else has used meanwhile.
    """

    texts: int
    elapsed: float
    cpu: float
    others: float


class Loop:
    """The loop in a process of its own, waiting for its turn; a context manager."""

    def __init__(self, setup: Setup) -> None:
        command = [sys.executable, "-m", __name__, setup.model, str(setup.threads)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def run(self, shape: Shape) -> Passes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(shape._asdict()) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return Passes(**answer)


def steps(mean: float, count: int) -> list[int]:
    """Return so many whole numbers, each next to `mean`, that have it on average."""
    edges = [round(index * mean) for index in range(count + 1)]
    return [edges[index + 1] - edges[index] for index in range(count)]


def _busy(cpus: Sequence[int]) -> float:
    return busy_seconds(Path("/proc/stat").read_text(), cpus)


def _open(model: str, threads: int) -> onnx.Session:
    opened: list[onnx.Session] = []

    class Recorded(onnx.OnnxBackend):
        def _open_session(self, graph: Graph, device: Device) -> onnx.Session:
            opened.append(super()._open_session(graph, device))
            return opened[0]

    config = LocalEmbeddingConfig(model_name=model, backend=ModelBackend.ONNX, threads=threads)
    Recorded(config, ModelFiles(Path(model)))
    return opened[0]


def _repeat(
    session: onnx.Session, output: str, batches: Sequence[dict[str, Any]], shape: Shape
) -> int:
    texts, until = 0, time.perf_counter() + shape.seconds
    for batch in itertools.cycle(batches):
        if time.perf_counter() > until:
            break
        session.run([output], batch)
        texts += len(batch["input_ids"])
    return texts


def main(model: str, threads: str) -> None:
    session = _open(model, 1)
    workers = ThreadPoolExecutor(int(threads))
    output = session.get_outputs()[0].name
    names = {node.name for node in session.get_inputs()}
    cpus = sorted(os.sched_getaffinity(0))
    rng = np.random.default_rng(20)

    def feeds(rows: int, length: int) -> dict[str, Any]:
        ids = rng.integers(1_000, 30_000, (rows, length))
        made = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
            "token_shares": np.full(ids.shape, 1 / length, np.float32),
        }
        return {name: made[name] for name in names}

    for line in sys.stdin:
        shape = Shape(**json.loads(line))
        sizes = zip(steps(shape.rows, 64), steps(shape.length, 64), strict=True)
        batches = [feeds(max(1, rows), max(3, length)) for rows, length in sizes]
        for batch in batches[:8]:
            session.run([output], batch)
        busy, cpu, began = _busy(cpus), time.process_time(), time.perf_counter()
        runs = [
            workers.submit(_repeat, session, output, batches[start:] + batches[:start], shape)
            for start in range(0, len(batches), len(batches) // int(threads))
        ]
        texts = sum(run.result() for run in runs)
        elapsed = time.perf_counter() - began
        cpu, busy = time.process_time() - cpu, _busy(cpus) - busy
        passes = Passes(texts, elapsed, cpu, max(0.0, busy - cpu) / (elapsed * len(cpus)))
        print(json.dumps(passes._asdict()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
