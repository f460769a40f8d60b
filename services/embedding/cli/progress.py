"""Show how far something is, if somebody sits at the terminal."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Generator

Advance = Callable[[int, str], object]
"""Told how many are done altogether, and something to show beside."""


@contextlib.contextmanager
def progress(
    title: str, total: Callable[[], int | None], *, quiet: bool = False
) -> Generator[Advance]:
    """Show a bar on standard error, or counts if `rich` is not installed; nothing off a terminal.

    Args:
        title: What is counted.
        total: Finds out how many there are, if a bar is shown; None if nobody knows.
        quiet: Whether to show nothing in any case.
    """
    if quiet or not sys.stderr.isatty():
        yield _nothing
        return
    has_rich = importlib.util.find_spec("rich") is not None
    with (_bar if has_rich else _counts)(title, total()) as advance:
        yield advance


@contextlib.contextmanager
def _counts(title: str, total: int | None) -> Generator[Advance]:
    of = f" of {total}" if total is not None else ""
    try:
        yield lambda done, note: sys.stderr.write(f"\r{title}: {done}{of}  {note}")
    finally:
        sys.stderr.write("\n")


@contextlib.contextmanager
def _bar(title: str, total: int | None) -> Generator[Advance]:
    from rich import progress as rich  # noqa: PLC0415 - only an extra has it
    from rich.console import Console  # noqa: PLC0415

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[note]}"),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    # What the command writes to standard output must not end up on the terminal.
    console = Console(stderr=True)
    with rich.Progress(
        *columns, console=console, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


def _nothing(_done: int, _note: str) -> None:
    """Nobody looks."""
