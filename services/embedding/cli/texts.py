"""Read texts from a file or from standard input: one a line, or a field of JSON lines."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from shared.infrastructure.resilience import ConfigurationError

STDIN = "-"
_BLOCK = 1 << 20


def add_source(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Add the arguments that say where texts come from."""
    parser.add_argument(
        "file",
        metavar="FILE",
        help="file in UTF-8, one text a line; - is standard input",
        **options,
    )
    parser.add_argument(
        "--field", metavar="NAME", help="lines are JSON objects; the text is this field of each"
    )


@contextlib.contextmanager
def texts_of(file: str, field: str | None) -> Generator[Iterator[str]]:
    """Open a file and give its texts; the last may lack a line end, and a line may be empty.

    Raises:
        ConfigurationError: The file cannot be opened; or, while texts are read, a line has no such
            field or is not UTF-8.
    """
    if file == STDIN:
        yield _read(sys.stdin.buffer, field)
        return
    try:
        lines = Path(file).open("rb")  # noqa: SIM115 - closed below; only opening may fail here
    except OSError as exc:
        raise ConfigurationError(
            f"cannot read {file}: {exc.strerror}; give a file, or - for standard input"
        ) from exc
    with lines:
        yield _read(lines, field)


def count_lines(file: str) -> int | None:
    """Return how many texts a file has; None if only reading it to its end would tell."""
    path = Path(file)
    if file == STDIN or not path.is_file():
        return None
    count, last = 0, b"\n"
    with path.open("rb") as data:
        while block := data.read(_BLOCK):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")


def _read(lines: Iterable[bytes], field: str | None) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as exc:
            raise ConfigurationError(f"line {number} is not UTF-8: {exc}") from exc
        yield text if field is None else _field(text, field, number)


def _field(line: str, field: str, number: int) -> str:
    try:
        value: object = json.loads(line)
    except ValueError as exc:
        raise ConfigurationError(f"line {number} is no JSON: {exc}") from exc
    text = cast("dict[str, object]", value).get(field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise ConfigurationError(f"line {number} has no text in a field {field!r}")
    return text
