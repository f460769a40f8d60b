"""Measure what a request costs its client: `python -m benchmarks.http_client`.

nginx has one core, the clients another. Each client is a process of its own, so that none pays for
the memory, threads or patches of another; in every round each has its turn, so that a noisy moment
falls on all, and ratios are taken within a round. What counts is processor time of the client.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.http_sections import CHAT, GET, SLOW, Section
from benchmarks.http_server import Target, find_nginx, serving
from benchmarks.http_tables import Results, bars_table, figures_table, flat_table, p99_table
from benchmarks.http_worker import Figures, Turn
from benchmarks.report import publish, versions

ROOT = Path(__file__).resolve().parent.parent
# litellm needs an older openai than the one to compare with.
LITELLM = ROOT / ".venv-bench-litellm" / "bin" / "python"
PACKAGES = [
    *("httpx", "httpcore", "httpx2", "httpcore2", "httptools", "h2", "aiohttp", "httpx-aiohttp"),
    *("tenacity", "aiobreaker", "aiolimiter", "openai"),
]
ROUNDS, QUICK = 7, 2


class Worker:
    """A client in a process of its own, waiting for its turn; after an error it begins anew.

    Attributes:
        errors: What went wrong, and when.
        module: What runs in the process.
        figures: What it answers.
    """

    module = "benchmarks.http_worker"
    figures: Callable[..., Any] = Figures

    def __init__(self, module: str, arm: str, target: Target, core: int) -> None:
        python = LITELLM if arm.startswith("litellm") else Path(sys.executable)
        options = (module, arm, json.dumps(target._asdict()), str(core))
        self._command = [str(python), "-m", self.module, *options]
        self._process: subprocess.Popen[str] | None = None
        self.errors: list[str] = []

    def take(self, turn: Turn) -> Any:
        """Return what a turn has shown, or None if the client fails at it."""
        try:
            process = self._process = self._process or self._started()
            answer = self._said(process, json.dumps(turn._asdict()))
        except (OSError, WorkerError) as error:
            self.errors.append(f"at {turn.concurrency:,} at a time: {error}")
            self.stop()
            return None
        return type(self).figures(**answer)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self._command, cwd=ROOT, env=_environment(), stdin=pipe, stdout=pipe, text=True
        )

    def _said(self, process: subprocess.Popen[str], line: str) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
        if "cpu" not in answer:
            raise WorkerError(answer.get("error", "its process ended"))
        return answer


class WorkerError(Exception):
    """The client has failed."""


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    # litellm would look for a newer price list on the Internet.
    return kept | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}


@contextlib.contextmanager
def workers(
    section: Section, target: Target, core: int, kind: type[Worker] = Worker
) -> Iterator[dict[str, Worker]]:
    made = {arm: kind(section.module, arm, target, core) for arm in section.arms}
    try:
        yield made
    finally:
        for worker in made.values():
            worker.stop()


def measure(section: Section, made: dict[str, Worker], rounds: int) -> Results:
    """Give each client `rounds` turns at each concurrency; every other round goes backwards."""
    results: Results = {}
    for number in range(rounds):
        for concurrency, seconds in section.seconds.items():
            turn = Turn(section.path, concurrency, seconds)
            for arm in list(made)[:: -1 if number % 2 else 1]:
                seen = results.setdefault((arm, concurrency), [])
                # Who fails once would again, and may take a minute for it.
                seen.append(None if None in seen else made[arm].take(turn))
    return results


def installed() -> str:
    """Return the versions of what is compared."""
    text = versions(PACKAGES)
    if LITELLM.exists():
        names = ["litellm", "openai", "httpx", "aiohttp"]
        code = f"from benchmarks.report import versions; print(versions({names}))"
        command = [str(LITELLM), "-c", code]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        text += f". By itself: {done.stdout.strip()}"
    return text + ".\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what a request costs its client.")
    parser.add_argument("--quick", action="store_true", help="two short rounds, to try it out")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="take only these clients")
    options = parser.parse_args()
    nginx = find_nginx()
    if nginx is None:
        print("benchmarks.http_client is skipped: no nginx here; try: apt-get install nginx-light")
        return 0
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        print("benchmarks.http_client is skipped: it needs Linux, and two processor cores")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parts = [INTRODUCTION.format(rounds=QUICK if options.quick else ROUNDS)]
    with serving(nginx, cores[0]) as target:
        for section in (GET, SLOW, CHAT):
            if arms := tuple(arm for arm in section.arms if arm in (options.arms or section.arms)):
                taken = section._replace(arms=arms)
                parts.append(run(taken, target, cores[-1], is_quick=options.quick))
    parts.append(installed())
    is_whole = not options.quick and not options.arms
    publish("http_client", "Cost of a request", "\n".join(parts), keep=is_whole)
    return 0


def run(section: Section, target: Target, core: int, *, is_quick: bool) -> str:
    """Return what a section has shown."""
    title = f"## {section.title}\n"
    if section.path == "/slow" and not target.has_slow:
        return f"{title}\nSkipped: this nginx has no echo module.\n"
    if is_quick:
        short = {c: seconds / 3 for c, seconds in section.seconds.items() if c < 1_000}
        section = section._replace(seconds=short)
    with workers(section, target, core) as made:
        results = measure(section, made, QUICK if is_quick else ROUNDS)
        parts = [title, figures_table(section, results), bars_table(section, results)]
        if 1_000 in section.seconds:
            parts.append(flat_table(section, results))
        if section.path == "/slow":
            parts.append(p99_table(results))
        if failed := [f"- {arm} {error}" for arm in made for error in made[arm].errors]:
            parts += ["What went wrong:\n", "\n".join(failed) + "\n"]
    return "\n".join(filter(None, parts))


INTRODUCTION = """\
Medians of {rounds} interleaved rounds. In bold, microseconds of processor time a request costs the
process of its client; then requests a second, and how long one takes, p50 and p99. Below, ratios of
processor time: the median of those of each round, their range, and what is asked of ours.
"""

if __name__ == "__main__":
    sys.exit(main())
