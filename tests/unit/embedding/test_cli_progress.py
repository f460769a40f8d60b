import importlib.util
import io
import sys

import pytest

from services.embedding.cli.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, quiet: bool = False) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("texts", lambda: 7, quiet=quiet) as advance:
        advance(3, "30 tokens")
        advance(7, "70 tokens")
    return stream.getvalue()


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, Terminal())
    assert "7/7" in text
    assert "70 tokens" in text


def test_without_rich_it_shows_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "rich" else find(name)
    )
    text = shown(monkeypatch, Terminal())
    assert text == "\rtexts: 3 of 7  30 tokens\rtexts: 7 of 7  70 tokens\n"


def test_nothing_is_shown_off_a_terminal_or_when_it_would_be_in_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert shown(monkeypatch, io.StringIO()) == ""
    assert shown(monkeypatch, Terminal(), quiet=True) == ""
