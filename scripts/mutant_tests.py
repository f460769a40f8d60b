"""Which tests see which line: what a run of the sound code shows, for `scripts/mutate.py`."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import coverage
import pytest
from hypothesis import Phase, settings

from scripts.mutants import Mutant

PACKAGE = "shared/infrastructure/resilience"
TESTS = (
    "tests/unit/resilience",
    "tests/property",
    "tests/integration/test_redis_limiter.py",
    "tests/integration/test_redis_turns.py",
)
# They take real time: only for faults in what they are about.
SLOW = "tests/integration/"
PLUGINS = ("pytest_asyncio.plugin", "pytest_timeout")
# Seconds from which on a test is too long to be run for every fault at import.
LONG = 0.2
# Seconds of tests after which a fault that none has noticed is left to the tests about its file.
ENOUGH = 10.0
# Exit status of a fork that could not do its work.
BROKEN = 70


@dataclass
class Seen:
    """What a run of the sound code showed.

    Attributes:
        tests: Which tests see a line of a file.
        at_import: Lines that run before any test does.
        seconds: What each test took.
        failed: Tests that fail; they say nothing about a fault.
    """

    tests: dict[tuple[str, int], set[str]] = field(default_factory=dict[tuple[str, int], set[str]])
    at_import: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    failed: set[str] = field(default_factory=set[str])

    def by(self, mutant: Mutant) -> list[str]:
        """Return tests that run the faulty lines: those about the file, and the quickest others."""
        places = {(mutant.file, line) for line in lines_of(mutant)}
        names = self._quickest_first(self._that_run(places), mutant)
        spent = accumulate(self.seconds[name] for name in names)
        return [
            name
            for name, seconds in zip(names, spent, strict=True)
            if seconds < ENOUGH or is_about(mutant, name)
        ]

    def near(self, mutant: Mutant) -> list[str]:
        """Return the tests that run anything of the file and are quick, or about that very file."""
        run = self._that_run({place for place in self.tests if place[0] == mutant.file})
        quick = {name for name in run if self.seconds[name] < LONG}
        # Those that are about it need not run a line of it: they may look at a default.
        about = {name for name in self.seconds if is_about(mutant, name)}
        return self._quickest_first(quick | about, mutant)

    def is_early(self, mutant: Mutant) -> bool:
        """Return whether a fault takes effect at import or collection, too."""
        return any((mutant.file, line) in self.at_import for line in lines_of(mutant))

    def _that_run(self, places: set[tuple[str, int]]) -> set[str]:
        return {name for place in places for name in self.tests.get(place, ())}

    def _quickest_first(self, names: set[str], mutant: Mutant) -> list[str]:
        fit = (name for name in names if is_about(mutant, name) or not name.startswith(SLOW))
        return sorted(set(fit) - self.failed, key=lambda name: (self.seconds[name], name))


def lines_of(mutant: Mutant) -> Iterable[int]:
    return range(mutant.first_line, mutant.last_line + 1)


def is_about(mutant: Mutant, test: str) -> bool:
    """Return whether a test is about the file that has the fault, or one named alike."""
    file = Path(mutant.file)
    about = ("config", file.stem.partition("_")[0], file.parent.name)
    return any(f"/test_{name}" in test for name in about)


def run_tests(watcher: object, tests: Sequence[str], *, timeout: int = 0) -> int:
    """Run pytest in this process, the same way every time."""
    sound = settings(
        derandomize=True, database=None, deadline=None, phases=(Phase.explicit, Phase.generate)
    )
    settings.register_profile("mutation", sound)
    settings.load_profile("mutation")
    there = [name for name in tests if Path(name.partition("::")[0]).exists()]
    switches = [
        "-q",
        "--tb=no",
        "--continue-on-collection-errors",
        "-p",
        "no:cacheprovider",
        f"--timeout={timeout}",
    ]
    for plugin in PLUGINS:
        switches += ["-p", plugin]
    switches += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*switches, *there], plugins=[watcher]))


def in_fork(work: Callable[[], int]) -> int:
    """Do `work` in a fork of this process; return its exit status, negative if it was killed."""
    pid = os.fork()
    if pid == 0:
        status = BROKEN
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hush() -> None:
    """Send what the tests print to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def learn(result: Path) -> Seen:
    """Run all tests on the sound code, in a fork so that this process imports none of it."""
    print("running the tests on the sound code", flush=True)
    if in_fork(lambda: Witness().work(result)) != 0:
        raise SystemExit("mutate: the tests do not even run on the sound code")
    seen: Seen = pickle.loads(result.read_bytes())  # noqa: S301 - written just now
    for name in seen.failed:
        print(f"left out, for it fails on the sound code: {name}")
    return seen


class Witness:
    """A pytest plugin that notes which test runs which line."""

    def __init__(self) -> None:
        self._coverage = coverage.Coverage(
            data_file=None, config_file=False, include=[f"{PACKAGE}/**"]
        )
        self._seen = Seen()

    def work(self, result: Path) -> int:
        self._coverage.start()
        status = run_tests(self, TESTS, timeout=60)
        self._coverage.stop()
        if status not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
            return BROKEN
        data = self._coverage.get_data()
        for path in data.measured_files():
            file = str(Path(path).relative_to(Path.cwd()))
            for line, names in data.contexts_by_lineno(path).items():
                self._seen.tests[file, line] = set(names) - {""}
                if "" in names:
                    self._seen.at_import.add((file, line))
        result.write_bytes(pickle.dumps(self._seen))
        return 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seconds = self._seen.seconds
        seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self._seen.failed.add(report.nodeid)
