"""What the demo shows while it works: a live picture on a terminal, plain lines elsewhere.

A view is fed plain values and knows nothing of what produced them.
"""

from __future__ import annotations

import io
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REDRAW_INTERVAL = 0.08
SCROLLED_IN_PICTURE = 3
PICTURE_WIDTH = 110
FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
STATE_STYLES = {"closed": "green", "half_open": "yellow", "open": "bold red"}


@dataclass(frozen=True)
class HostRow:
    """One host, as it stands.

    Attributes:
        name: Name of the host.
        state: State of its circuit breaker: closed, open or half_open.
        in_flight: Requests under way.
        requests: Requests sent so far.
        failures: How many of them failed.
        latency_ms: Mean latency of the answers, in milliseconds; None before the first.
    """

    name: str
    state: str
    in_flight: int
    requests: int
    failures: int
    latency_ms: float | None


@dataclass(frozen=True)
class Report:
    """What the whole run came to: counts, and the seconds it took."""

    texts: int
    cache_hits: int
    calls: int
    failovers: int
    answered: int
    failed: int
    seconds: float


class View(Protocol):
    """The demo's face; used as a context manager, called from one thread."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...

    def note(self, text: str) -> None:
        """Tell of something that happened."""
        ...

    def embedded(self, done: int, total: int) -> None:
        """Show how many passages are embedded."""
        ...

    def hosts(self, rows: Sequence[HostRow]) -> None:
        """Show the hosts as they stand."""
        ...

    def asked(self, number: int, question: str) -> None:
        """Show that a question, counted from 1, is being answered."""
        ...

    def streamed(self, number: int, piece: str) -> None:
        """Add a piece to the answer of a question."""
        ...

    def restarted(self, number: int) -> None:
        """Forget the pieces of an answer: it broke off and begins anew."""
        ...

    def answered(self, number: int, source: str) -> None:
        """Finish the answer of a question and say which host and passages it comes from."""
        ...


class PlainView:
    """Lines for a pipe or a log: no control characters, an answer at a time."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._open: dict[int, tuple[str, list[str]]] = {}
        self._states: dict[str, str] = {}
        self._quarter = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def note(self, text: str) -> None:
        self._print(clean(text))

    def embedded(self, done: int, total: int) -> None:
        quarter = 4 * done // total if total else 4
        if quarter > self._quarter:
            self._print(f"embedded {done} of {total} passages")
        self._quarter = quarter

    def hosts(self, rows: Sequence[HostRow]) -> None:
        for row in rows:
            before = self._states.get(row.name, "closed")
            if row.state != before:
                self._print(f"{row.name}: breaker {before} -> {row.state}")
            self._states[row.name] = row.state

    def asked(self, number: int, question: str) -> None:
        self._open[number] = (question, [])

    def streamed(self, number: int, piece: str) -> None:
        self._open[number][1].append(piece)

    def restarted(self, number: int) -> None:
        self._open[number][1].clear()

    def answered(self, number: int, source: str) -> None:
        question, pieces = self._open.pop(number)
        self._print(f"{number}. {clean(question)}")
        self._print(f"   {clean(''.join(pieces))}")
        self._print(f"   [{clean(source)}]")

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class LiveView:
    """A picture that is redrawn in place; finished answers scroll by above it.

    It is drawn by the calls that feed it, at most every `REDRAW_INTERVAL`: no thread.

    Args:
        console: Terminal to draw on.
        picture: SVG file to write as soon as a circuit breaker is open; None writes none.
    """

    def __init__(self, console: Console, picture: Path | None = None) -> None:
        self._wanted_picture = picture
        self._scrolled: deque[RenderableType] = deque(maxlen=SCROLLED_IN_PICTURE)
        self._drawn = 0.0
        self._progress = (0, 0)
        self._rows: Sequence[HostRow] = ()
        self._open: dict[int, tuple[str, list[str]]] = {}
        self._live = Live(console=console, auto_refresh=False, get_renderable=self._picture)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open.clear()
        self._live.stop()

    def note(self, text: str) -> None:
        self._scroll(Text(clean(text), style="dim"))

    def embedded(self, done: int, total: int) -> None:
        self._progress = (done, total)
        self._redraw()

    def hosts(self, rows: Sequence[HostRow]) -> None:
        self._rows = tuple(rows)
        self._redraw()
        if self._wanted_picture and any(row.state == "open" for row in rows):
            self._save_picture(self._wanted_picture)
            self._wanted_picture = None

    def asked(self, number: int, question: str) -> None:
        self._open[number] = (question, [])
        self._redraw()

    def streamed(self, number: int, piece: str) -> None:
        self._open[number][1].append(piece)
        self._redraw()

    def restarted(self, number: int) -> None:
        self._open[number][1].clear()

    def answered(self, number: int, source: str) -> None:
        question, pieces = self._open.pop(number)
        self._scroll(
            Group(
                Text(f"{number}. {clean(question)}", style="bold"),
                Padding(Text(clean("".join(pieces))), (0, 0, 0, 3)),
                Padding(Text(clean(source), style="dim"), (0, 0, 1, 3)),
            )
        )

    def _scroll(self, content: RenderableType) -> None:
        self._scrolled.append(content)
        self._live.console.print(content)

    def _save_picture(self, path: Path) -> None:
        paper = Console(record=True, width=PICTURE_WIDTH, file=io.StringIO(), force_terminal=True)
        paper.print(*self._scrolled, self._picture(), sep="\n")
        svg = paper.export_svg(title="make demo")
        # A picture that asks nobody for its fonts.
        path.write_text(FONT_FACE.sub("", svg), encoding="utf-8")

    def _redraw(self) -> None:
        now = time.monotonic()
        if now - self._drawn >= REDRAW_INTERVAL:
            self._drawn = now
            self._live.refresh()

    def _picture(self) -> RenderableType:
        parts = [self._bar()] if self._progress[1] else []
        if self._rows:
            parts.append(self._table())
        return Group(*parts, *self._answers())

    def _bar(self) -> RenderableType:
        done, total = self._progress
        return Columns(
            ["embedding", ProgressBar(total, done, width=40), f"{done} of {total} passages"]
        )

    def _table(self) -> RenderableType:
        table = Table("host", "breaker")
        for heading in ("in flight", "requests", "failures", "mean ms"):
            table.add_column(heading, justify="right")
        for row in self._rows:
            table.add_row(
                row.name,
                Text(row.state, style=STATE_STYLES.get(row.state, "")),
                *(str(count) for count in (row.in_flight, row.requests, row.failures)),
                "-" if row.latency_ms is None else f"{row.latency_ms:.0f}",
            )
        return table

    def _answers(self) -> list[RenderableType]:
        return [
            Panel(Text(clean("".join(pieces))), title=Text(clean(question)), title_align="left")
            for question, pieces in self._open.values()
        ]


def make_view(stream: IO[str], picture: Path | None = None) -> View:
    """Return the view that fits the stream: live on a terminal, plain otherwise.

    A live one writes `picture`, an SVG file, in the middle of the run.
    """
    if not stream.isatty():
        return PlainView(stream)
    console = Console(file=stream)
    return PlainView(stream) if console.is_dumb_terminal else LiveView(console, picture)


def closing_report(report: Report, stream: IO[str]) -> None:
    """Print what the run came to."""
    lines = (
        f"{report.answered} answered, {report.failed} failed, in {report.seconds:.1f} s",
        f"texts embedded  {report.texts:>6}",
        f"cache hits      {report.cache_hits:>6}",
        f"calls           {report.calls:>6}",
        f"failovers       {report.failovers:>6}",
    )
    print("\n".join(lines), file=stream, flush=True)


def clean(text: str) -> str:
    """Make text of unknown origin safe to print: one line, no control characters."""
    printable = (character if character.isprintable() else " " for character in text)
    return " ".join("".join(printable).split())
