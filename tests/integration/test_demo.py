"""The demo as its user runs it: from the shell, with trouble."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "examples/corpus"


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    for name in ("glass.md", "tides.md"):
        shutil.copy(CORPUS / name, tmp_path)
    questions = ["How is float glass made?", "Which bay has the largest tides?"]
    (tmp_path / "questions.txt").write_text("\n".join(questions * 3))
    return tmp_path


@pytest.fixture
def demo(documents: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        # A shell's background job ignores Ctrl-C, and so would its children.
        ["env", "--default-signal=INT", sys.executable, "-m", "examples.demo", str(documents)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def children(pid: int) -> dict[int, str]:
    """Return the processes below `pid`, with their command lines."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if parent == pid and command:
            found[int(folder.name)] = command
    return found


def hosts(pid: int) -> list[int]:
    return [child for child, command in children(pid).items() if "llama-server" in command]


def wait_for_hosts(demo: subprocess.Popen[str], count: int) -> list[int]:
    for _ in range(600):
        if len(found := hosts(demo.pid)) >= count:
            return found
        assert demo.poll() is None
        time.sleep(0.05)
    raise AssertionError("the hosts were never started")


def read_until(demo: subprocess.Popen[str], words: str) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if words in line:
            return
    raise AssertionError(f"the demo never said {words!r}")


def test_it_answers_everything_though_it_kills_a_host(demo: subprocess.Popen[str]) -> None:
    output, errors = demo.communicate(timeout=100)
    assert demo.returncode == 0, errors
    assert "kill -9 llm-" in output
    assert "6 answered, 0 failed" in output
    assert "\x1b" not in output
    assert errors == ""


@pytest.mark.parametrize("moment", ["starting", "embedded", "1. "])
def test_it_answers_everything_though_somebody_kills_a_host(
    demo: subprocess.Popen[str], moment: str
) -> None:
    read_until(demo, moment)
    victim = wait_for_hosts(demo, 1)[0]
    os.kill(victim, signal.SIGKILL)
    output, errors = demo.communicate(timeout=100)
    assert demo.returncode == 0, output + errors
    assert "6 answered, 0 failed" in output


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interruption_leaves_nothing_running(
    demo: subprocess.Popen[str], number: signal.Signals, status: int
) -> None:
    read_until(demo, "embedded")
    running = children(demo.pid)
    assert len(running) == 4
    demo.send_signal(number)
    _, errors = demo.communicate(timeout=30)
    assert demo.returncode == status, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert [pid for pid in running if Path(f"/proc/{pid}").exists()] == []


def test_a_folder_without_documents_is_said_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("demo: ")
    assert len(done.stderr.splitlines()) == 1
