"""Plant small faults in the resilience package and count those that no test notices.

`python -m scripts.mutate [FILE ...]` prints a score per file and every survivor. It fails if a file
scores under 95 %; survivors that `docs/design/mutation.md` gives a reason for do not count.

Everything happens on a copy of the tree. The tests run once under coverage, to learn which test
sees which line. Then, for each fault, a fork of a process that has everything imported and
collected gets the faulty code in place of the sound one and runs the tests that see it, up to the
first that fails. A fault that takes effect at import is there before anything is imported.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from scripts.mutant_tests import BROKEN, PACKAGE, TESTS, Seen, hush, in_fork, learn, run_tests
from scripts.mutant_trials import Trial, living_functions, planter
from scripts.mutants import Mutant, mutants_of

ROOT = Path(__file__).resolve().parent.parent
REASONS = ROOT / "docs/design/mutation.md"
LEAST = 95.0
# What the package and its tests import: there in every fork without another import.
PRELOADED = (
    "asyncio",
    "hypothesis.stateful",
    "httpx",
    "numpy",
    "pydantic",
    "redis.asyncio",
    "tenacity",
)

KILLED, SURVIVED, HUNG, UNCLEAR = "killed", "survived", "hung", "unclear"
FATES = {0: SURVIVED, BROKEN: UNCLEAR}


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the faults that no test notices.")
    parser.add_argument("files", nargs="*", help=f"files of {PACKAGE}; default: all of them")
    chosen = parser.parse_args().files
    files = [str(Path(file)) for file in chosen] or sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).rglob("*.py")
    )
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        os.chdir(folder)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        sys.path[0] = folder
        for name in PRELOADED:
            importlib.import_module(name)
        seen = learn(Path("seen.pickle"))
        mutants = [mutant for file in files for mutant in mutants_of(file, Path(file).read_text())]
        outcomes = try_all(mutants, seen)
    return report(mutants, outcomes, bool(seen.failed))


def copy_tree(target: Path) -> None:
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("shared", "examples", "tests"):
        shutil.copytree(ROOT / name, target / name, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", target)


def try_all(mutants: Sequence[Mutant], seen: Seen) -> list[str]:
    """Return what became of each mutant; as many are tried at a time as there are processors."""
    print(f"trying {len(mutants)} faults", flush=True)
    workers = range(2 * (os.cpu_count() or 1))  # some only wait for what hangs
    pids: list[int] = []
    for number in workers:
        pid = os.fork()
        if pid == 0:
            Worker(mutants, seen, Path(f"fates-{number}")).work(
                range(number, len(mutants), len(workers))
            )
            os._exit(0)
        pids.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    if any(statuses):
        raise SystemExit("mutate: a worker died")
    print()
    fates: dict[int, str] = {}
    for number in workers:
        fates |= read_fates(Path(f"fates-{number}"))
    return [fates[index] for index in range(len(mutants))]


def read_fates(journal: Path) -> dict[int, str]:
    """Return the latest entry of each mutant."""
    return dict(json.loads(line) for line in journal.read_text().splitlines())


class Worker:
    """Tries mutants, a fork each; a pytest plugin, so that it is there once all is collected."""

    def __init__(self, mutants: Sequence[Mutant], seen: Seen, journal: Path) -> None:
        self._mutants = mutants
        self._seen = seen
        self._journal = journal
        self._late: list[int] = []
        self._progress = os.dup(1)

    def work(self, indices: Iterable[int]) -> None:
        hush()
        self._journal.touch()
        self._late = [index for index in indices if self._mutants[index].scope]
        in_fork(lambda: run_tests(self, TESTS))
        fates = read_fates(self._journal)
        for index in indices:
            mutant = self._mutants[index]
            fate = fates.get(index, UNCLEAR)
            if fate == UNCLEAR or (fate == SURVIVED and self._seen.is_early(mutant)):
                trial = Trial(self._seen.near(mutant), self._seen)
                self._note(index, in_fork(lambda trial=trial, mutant=mutant: trial.afresh(mutant)))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        functions = living_functions()
        gc.freeze()
        for index in self._late:
            mutant = self._mutants[index]
            chosen = [items[name] for name in self._seen.by(mutant) if name in items]
            trial = Trial([item.nodeid for item in chosen], self._seen)
            plant = planter(mutant, functions)
            self._note(
                index,
                in_fork(lambda trial=trial, plant=plant, chosen=chosen: trial.here(chosen, plant)),
            )
        return True

    def _note(self, index: int, status: int) -> None:
        fate = FATES.get(status, HUNG if status < 0 else KILLED)
        with self._journal.open("a") as journal:
            journal.write(json.dumps([index, fate]) + "\n")
        os.write(self._progress, {SURVIVED: b"!", UNCLEAR: b"?"}.get(fate, b"."))


def report(mutants: Sequence[Mutant], outcomes: Sequence[str], failed: bool) -> int:
    """Print the scores and the survivors; return 1 if a score is too low or a sound test failed."""
    explained = read_reasons()
    files = list(dict.fromkeys(mutant.file for mutant in mutants))
    too_low = 0
    for file in files:
        fates = [(m, o) for m, o in zip(mutants, outcomes, strict=True) if m.file == file]
        alive = [mutant for mutant, outcome in fates if outcome == SURVIVED]
        excused = [mutant for mutant in alive if key_of(mutant) in explained]
        counted = len(fates) - len(excused)
        score = 100.0 * (len(fates) - len(alive)) / counted if counted else 100.0
        hung = sum(outcome == HUNG for _, outcome in fates)
        too_low += score < LEAST
        print(
            f"{score:5.1f} %  {file}: {len(fates)} faults, {len(alive)} survived, "
            f"{len(excused)} of them explained, {hung} hung"
        )
        for mutant in alive:
            if mutant not in excused:
                print(f"    line {mutant.first_line}: - {key_of(mutant)}")
    return 1 if too_low or failed else 0


def key_of(mutant: Mutant) -> str:
    """Return how a mutant is named in the list of reasons."""
    file = mutant.file.removeprefix(PACKAGE + "/")
    return f"`{file}` `{mutant.scope or 'import'}`: `{mutant.old}` → `{mutant.new}`"


def read_reasons() -> set[str]:
    """Return the mutants that the list of reasons names, an item each."""
    text = REASONS.read_text() if REASONS.exists() else ""
    one_line_each = re.sub(r"\n +", " ", text)
    return set(re.findall(r"^- (`[^`]+` `[^`]*`: `[^`]+` → `[^`]+`)", one_line_each, re.MULTILINE))


if __name__ == "__main__":
    raise SystemExit(main())
