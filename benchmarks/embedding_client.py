"""Embed 100,000 texts by a server with every client: `python -m benchmarks.embedding_client`.

The server has one core, the clients another. Each client is a process of its own, so that none pays
for the memory, the threads or the patches of another; in every round each has its turn, so that a
noisy moment falls on all, and ratios are taken within a round. A second server fails 2 % of the
requests: what counts there is that nothing is lost and nothing is wrong.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.embedding_client_worker import ARMS, Task, Turn
from benchmarks.report import Cell, publish, publish_data, table, versions

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [
    *("baseten-performance-client", "openai", "httpx", "httpx2", "httptools", "numpy"),
    *("pydantic", "pydantic-core"),
]
INPUTS, ROUNDS = 100_000, 5
QUICK_INPUTS, QUICK_ROUNDS = 20_000, 2
FAILING, FAILING_ROUNDS = 0.02, 2
DIMENSION, BATCH, CONCURRENCY = 384, 256, 16
RETAKES = 2  # of a turn that others have disturbed
DISTURBED = 0.08
OURS = "ours"
BARS = {"baseten-performance-client": 1.0, "AsyncOpenAI": 8.0}
"""How many times as many inputs a second ours has to embed."""

Results = dict[str, list[Turn | None]]


class Worker:
    """A contender in a process of its own, waiting for its turn.

    Attributes:
        error: Why it is out, if it is.
    """

    def __init__(self, arm: str, task: Task) -> None:
        options = (arm, json.dumps(task._asdict()))
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.embedding_client_worker", *options],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.error: str | None = None

    def ready(self) -> None:
        """Wait until it is warm, or out."""
        self._answer()

    def take(self, retakes: int = 0) -> Turn | None:
        """Return its turn, taken again if others were busy meanwhile; None if it is out."""
        turn = None
        for _ in range(1 + retakes):
            turn = self._take()
            if turn is None or turn.others <= DISTURBED:
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


@contextmanager
def serving(task: Task, core: int, failing: float) -> Iterator[Task]:
    """Run a server; yield what there is to do with it."""
    numbers = {"dimension": task.dimension, "texts": task.inputs, "failing": failing, "core": core}
    options = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.embedding_client_server", *options],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield task._replace(url=f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.terminate()
        process.communicate()


def measure(
    arms: Sequence[str], task: Task, rounds: int, retakes: int
) -> tuple[Results, dict[str, str]]:
    """Give each contender `rounds` turns, every other round backwards; also return who is out."""
    results: Results = {arm: [] for arm in arms}
    with ExitStack() as stack:
        made = {arm: Worker(arm, task) for arm in arms}
        for worker in made.values():
            stack.callback(worker.stop)
            worker.ready()
        for number in range(rounds):
            for arm in list(made)[:: -1 if number % 2 else 1]:
                turn = made[arm].take(retakes)
                results[arm].append(turn)
                say(f"round {number + 1}: {arm}: {said(turn) if turn else made[arm].error}")
        errors = {arm: worker.error for arm, worker in made.items() if worker.error}
    return results, errors


def said(turn: Turn) -> str:
    disturbed = f", {turn.others:.0%} taken by others" if turn.others > DISTURBED else ""
    return f"{turn.inputs / turn.seconds:,.0f} inputs/s{disturbed}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def median(values: Sequence[float]) -> str:
    middle, least, most = map(figure, (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})"


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"


def figures_table(results: Results) -> str:
    header = ["Client", "Inputs/s", "CPU s for 1,000 inputs", "Lost", "Wrong"]
    rows: list[list[object]] = []
    for arm, turns in results.items():
        seen = [turn for turn in turns if turn is not None]
        if seen:
            rate = [turn.inputs / turn.seconds for turn in seen]
            cpu = [1_000 * turn.cpu / turn.inputs for turn in seen]
            faults = [sum(turn.lost for turn in seen), sum(turn.wrong for turn in seen)]
            rows.append([arm, median(rate), median(cpu), *faults])
        else:
            rows.append([arm, "it failed", *"···"])
    return table(header, rows)


def bars_table(results: Results) -> str:
    header = ["Ours to", "Inputs/s", "Inputs by CPU s", "Bar"]
    rows: list[list[object]] = []
    for arm in results:
        pairs = [
            (ours, theirs)
            for ours, theirs in zip(results[OURS], results[arm], strict=True)
            if ours is not None and theirs is not None
        ]
        if arm == OURS or not pairs:
            continue
        wall = [theirs.seconds / ours.seconds for ours, theirs in pairs]
        cpu = [theirs.cpu / ours.cpu for ours, theirs in pairs]
        bar = BARS.get(arm)
        passes = None if bar is None else statistics.median(wall) >= bar
        asked = f"≥ {bar:g}" if bar else "none"
        rows.append([arm, Cell(median(wall), passes), median(cpu), asked])
    return table(header, rows)


def faults_table(results: Results) -> str:
    header = ["Client", "Lost", "Wrong", "Inputs/s"]
    rows: list[list[object]] = []
    for arm, turns in results.items():
        seen = [turn for turn in turns if turn is not None]
        if seen:
            lost, wrong = sum(turn.lost for turn in seen), sum(turn.wrong for turn in seen)
            rate = [turn.inputs / turn.seconds for turn in seen]
            asked = arm == OURS
            cells = [Cell(f"{count:,}", not count if asked else None) for count in (lost, wrong)]
            rows.append([arm, *cells, median(rate)])
        else:
            rows.append([arm, "it failed", *"··"])
    return table(header, rows)


def main() -> int:
    options = _parse()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        print("benchmarks.embedding_client is skipped: it needs Linux, and two processor cores")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    task = Task("", options.inputs, options.dimension, options.batch, CONCURRENCY, cores[-1])
    with serving(task, cores[0], 0.0) as target:
        results, errors = measure(options.arms, target, options.rounds, RETAKES)
    with serving(task, cores[0], FAILING) as target:
        rounds = min(options.rounds, FAILING_ROUNDS)
        faulty, more = measure(options.arms, target, rounds, 0)
    parts = [
        INTRODUCTION.format(**task._asdict(), rounds=options.rounds),
        bars_table(results) if OURS in results else "",
        figures_table(results),
        FAILURES.format(failing=FAILING, rounds=rounds),
        faults_table(faulty),
        "\n".join(f"- {arm} failed: {error}" for arm, error in {**errors, **more}.items()),
        f"\n{versions(PACKAGES)}.\n",
    ]
    is_whole = not options.quick and options.arms == list(ARMS)
    publish(
        "embedding_client", "Embedding by a server", "\n".join(filter(None, parts)), keep=is_whole
    )
    if is_whole:
        data = {
            **task._asdict(),
            "versions": versions(PACKAGES),
            "turns": _plain(results),
            "turns_with_failures": _plain(faulty),
        }
        publish_data("embedding_client", data)
    return 0


def _plain(results: Results) -> dict[str, object]:
    return {arm: [turn and turn._asdict() for turn in turns] for arm, turns in results.items()}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Embed texts by a server with every client.")
    parser.add_argument("--quick", action="store_true", help="few inputs, nothing is written")
    parser.add_argument("--arms", nargs="+", metavar="NAME", choices=ARMS, default=list(ARMS))
    parser.add_argument("--inputs", type=int, metavar="N", help=f"default: {INPUTS:,}")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--dimension", type=int, default=DIMENSION, help=f"default: {DIMENSION}")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"texts a request: {BATCH}")
    options = parser.parse_args()
    options.inputs = options.inputs or (QUICK_INPUTS if options.quick else INPUTS)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options


INTRODUCTION = """\
{inputs:,} texts of some 120 characters, {batch} a request, {concurrency} requests at a time,
vectors of {dimension} numbers: from a list of strings to an array, or what else the client returns.
The server has one core, and what it answers is there already; each client has another core to
itself. Medians of {rounds} interleaved rounds, and the range. Every vector is compared with the one
its text has.

*baseten-performance-client* asks for decimals, and for base64 only if told to; to decode that is
left to its user, and done here with numpy. *AsyncOpenAI* is used with a task a batch and a
semaphore.
"""

FAILURES = """\
The same with {failing:.0%} of the requests failing: 500, 503, 429 with `Retry-After: 1`, or a reset
connection. {rounds} rounds; inputs that were lost or wrong in all of them together.
"""

if __name__ == "__main__":
    sys.exit(main())
