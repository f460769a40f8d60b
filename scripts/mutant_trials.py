"""One fault, the tests that might notice it, and a process of its own: for `scripts/mutate.py`."""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest

from scripts.mutant_tests import Seen, is_about, run_tests
from scripts.mutants import Mutant

MEMORY = 4 << 30


class Trial:
    """Some tests against a fault, in a process of its own that ends with the first failure."""

    def __init__(self, tests: Sequence[str], seen: Seen) -> None:
        self._tests = tests
        self._seen = seen

    def here(self, items: Sequence[pytest.Item], plant: Callable[[], None]) -> int:
        """Run tests that are collected already."""
        self._limit(0.0)
        plant()
        for item, following in itertools.zip_longest(items, items[1:]):
            if not item.config.pluginmanager.is_registered(self):
                item.config.pluginmanager.register(self)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        return 0

    def afresh(self, mutant: Mutant) -> int:
        """Import and collect everything with the fault in it."""
        self._limit(10.0)
        sys.meta_path.insert(0, FaultyImporter(mutant))
        files = sorted({name.partition("::")[0] for name in self._tests})
        # Those that are about this very file: mostly they notice, and the rest is never imported.
        nearest = [file for file in files if is_about(mutant, file)]
        others = [file for file in files if file not in nearest]
        for group in (nearest, others):
            status = run_tests(self, group) if group else 0
            if status != 0:
                return status
        return 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        order = {name: index for index, name in enumerate(self._tests)}
        items[:] = [item for item in items if item.nodeid in order]
        items.sort(key=lambda item: order[item.nodeid])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        self._limit(self._seen.seconds[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os._exit(1)

    def _limit(self, usual: float) -> None:
        """End this process when it takes much longer than usual, or waits for what never comes."""
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.setitimer(signal.ITIMER_PROF, 2.0 + 5.0 * usual)
        signal.setitimer(signal.ITIMER_REAL, 6.0 + 20.0 * usual)


class FaultyImporter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module with a fault in it."""

    def __init__(self, mutant: Mutant) -> None:
        self._code = mutant.compile()
        self._name = mutant.file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)  # noqa: S102 - this is what a loader does


def living_functions() -> dict[CodeType, list[FunctionType]]:
    """Return every function in memory by its code, whatever is wrapped around it."""
    found: dict[CodeType, list[FunctionType]] = {}
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType):
            found.setdefault(thing.__code__, []).append(thing)
    return found


def planter(mutant: Mutant, functions: dict[CodeType, list[FunctionType]]) -> Callable[[], None]:
    """Return what puts the faulty code into the functions that live."""

    def plant() -> None:
        sound = {
            (Path(code.co_filename).name, code.co_qualname, code.co_firstlineno): found
            for code, found in functions.items()
            if code.co_filename.endswith(mutant.file)
        }
        hit = 0
        for code in codes_in(mutant.compile()):
            key = (Path(mutant.file).name, code.co_qualname, code.co_firstlineno)
            if code.co_qualname == mutant.scope:
                for function in sound.get(key, ()):
                    function.__code__ = code
                    hit += 1
        if not hit:
            raise RuntimeError(f"no function {mutant.scope} in memory")

    return plant


def codes_in(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from codes_in(constant)
