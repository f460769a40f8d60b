from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from examples.demo.view import (
    HostRow,
    LiveView,
    PlainView,
    Report,
    View,
    clean,
    closing_report,
    make_view,
)

CLOSED = HostRow("llm-1", "closed", in_flight=2, requests=7, failures=0, latency_ms=123.4)
OPEN = HostRow("llm-1", "open", in_flight=0, requests=9, failures=5, latency_ms=None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(view: View) -> None:
    with view:
        view.note("three hosts are up")
        for done in range(0, 101, 10):
            view.embedded(done, 100)
        view.hosts([CLOSED])
        view.asked(1, "Why is the sea salty?")
        view.asked(2, "Why is the sky blue?")
        view.streamed(1, "Rivers bring\n")
        view.streamed(2, "Light ")
        view.streamed(1, "salt.\x1b[2J")
        view.hosts([OPEN])
        view.hosts([OPEN])
        view.answered(1, "llm-1, sea.md 3")


def test_the_plain_view_prints_each_event_once_and_no_control_character() -> None:
    stream = io.StringIO()
    run(PlainView(stream))
    assert stream.getvalue().splitlines() == [
        "three hosts are up",
        "embedded 30 of 100 passages",
        "embedded 50 of 100 passages",
        "embedded 80 of 100 passages",
        "embedded 100 of 100 passages",
        "llm-1: breaker closed -> open",
        "1. Why is the sea salty?",
        "   Rivers bring salt. [2J",
        "   [llm-1, sea.md 3]",
    ]


def test_the_live_view_shows_progress_hosts_and_the_answers_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("examples.demo.view.REDRAW_INTERVAL", 0.0)
    stream = io.StringIO()
    run(LiveView(Console(file=stream, force_terminal=True, width=100, color_system=None)))
    shown = stream.getvalue()
    for text in ("10 of 100 passages", "in flight", "closed", "123", "Light", "Rivers bring"):
        assert text in shown
    assert "\x1b[2J" not in shown
    assert shown.count("1. Why is the sea salty?") == 1
    last_picture = shown.rpartition("breaker")[2]
    assert "open" in last_picture
    assert "Why is the sky blue?" not in last_picture


def test_the_live_view_gives_the_cursor_back_when_the_run_fails() -> None:
    stream = io.StringIO()
    view = LiveView(Console(file=stream, force_terminal=True))
    with pytest.raises(RuntimeError, match="broken"), view:
        raise RuntimeError("broken")
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l") >= 0


def test_the_live_view_redraws_no_oftener_than_its_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("examples.demo.view.REDRAW_INTERVAL", 3600.0)
    stream = io.StringIO()
    view = LiveView(Console(file=stream, force_terminal=True, width=100, color_system=None))
    with view:
        view.asked(1, "Why?")
        for _ in range(50):
            view.streamed(1, "because ")
        assert stream.getvalue().count("Why?") <= 1


@pytest.mark.parametrize(
    ("stream", "term", "kind"),
    [
        (io.StringIO(), "xterm", PlainView),
        (Terminal(), "xterm", LiveView),
        (Terminal(), "dumb", PlainView),
    ],
)
def test_only_a_terminal_that_can_redraw_gets_the_live_view(
    stream: io.StringIO, term: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    assert type(make_view(stream)) is kind


def test_the_report_names_every_count() -> None:
    stream = io.StringIO()
    closing_report(
        Report(texts=84, cache_hits=12, calls=25, failovers=1, answered=12, failed=0, seconds=9.87),
        stream,
    )
    assert [line.split() for line in stream.getvalue().splitlines()] == [
        ["12", "answered,", "0", "failed,", "in", "9.9", "s"],
        ["texts", "embedded", "84"],
        ["cache", "hits", "12"],
        ["calls", "25"],
        ["failovers", "1"],
    ]


def test_text_from_a_model_cannot_drive_the_terminal() -> None:
    assert clean("a\x1b]0;title\x07b\r\nc\u202e d") == "a ]0;title b c d"


def test_a_picture_is_written_once_when_a_breaker_is_open(tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    with LiveView(Console(file=io.StringIO(), force_terminal=True), picture) as view:
        view.asked(1, "Why?")
        view.hosts([HostRow("llm-1", "closed", 0, 1, 0, 2.0)])
        assert not picture.exists()
        view.hosts([HostRow("llm-1", "open", 0, 1, 1, 2.0)])
    text = picture.read_text()
    assert "llm-1" in text
    assert "@font-face" not in text


def test_an_answer_that_begins_anew_forgets_its_pieces() -> None:
    stream = io.StringIO()
    view = PlainView(stream)
    view.asked(1, "Why?")
    view.streamed(1, "Half an ans")
    view.restarted(1)
    view.streamed(1, "The whole answer.")
    view.answered(1, "llm-2")
    assert "Half" not in stream.getvalue()
    assert "The whole answer." in stream.getvalue()
