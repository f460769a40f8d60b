"""The command line as processes: what they print, how they end, what survives them."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 100.0


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "EMBEDDING" not in name}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "services.embedding", *map(str, arguments)]


def run(*arguments: object, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        input=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def vectors(lines: str) -> np.ndarray:
    return np.asarray([json.loads(line)["embedding"] for line in lines.splitlines()], np.float32)


def corpus_in(path: Path, count: int) -> Path:
    texts = [f"text number {number} " + "word " * (number % 9) for number in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_texts_of_a_pipe_come_out_as_lines_of_json_and_nothing_else() -> None:
    done = run("embed", "-", "--dimensions", 8, "--json", given="one\ntwo\n")
    assert (done.returncode, done.stderr) == (0, "")
    rows = vectors(done.stdout)
    assert rows.shape == (2, 8)
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1], abs=1e-6)
    both = vectors(run("embed", "--text", "one", "--text", "two", "--dimensions", 8).stdout)
    np.testing.assert_allclose(both, rows, atol=1e-6)


def test_a_killed_command_is_run_again_and_comes_to_the_same_end(tmp_path: Path) -> None:
    corpus = corpus_in(tmp_path / "corpus.jsonl", 600)
    out, whole = tmp_path / "out.npy", tmp_path / "whole.npy"
    options = ["--field", "text", "--window", 20, "--json"]
    progress = tmp_path / "out.npy.progress.json"
    with subprocess.Popen(
        command("embed", corpus, "--out", out, *options),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
    ) as process:
        while not progress.exists() or json.loads(progress.read_text())["rows"] == 0:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert 0 < len(np.load(out)) < 600
    for path in (out, whole):
        done = run("embed", corpus, "--out", path, *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["rows"] == 600
    assert np.abs(np.load(out) - np.load(whole)).max() <= 1e-6


def interrupted(*arguments: object, until: Path) -> tuple[int, str]:
    """Send Ctrl-C once a file has rows; return the status and what was said."""
    # In the background SIGINT is ignored; a shell at a terminal gives its commands the usual one.
    with subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        while not until.exists() or json.loads(until.read_text())["rows"] == 0:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, errors


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    corpus, out = corpus_in(tmp_path / "corpus.jsonl", 2000), tmp_path / "out.npy"
    status, errors = interrupted(
        *("embed", corpus, "--field", "text", "--window", 20, "--out", out),
        until=tmp_path / "out.npy.progress.json",
    )
    assert status == 130
    assert "rows are safe: run the same command again to go on" in errors
    assert "Traceback" not in errors


def test_a_reader_that_has_enough_ends_the_command_quietly(tmp_path: Path) -> None:
    corpus = corpus_in(tmp_path / "corpus.jsonl", 200)
    with subprocess.Popen(
        command("embed", corpus, "--field", "text", "--window", 10),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE) == 1


def test_a_terminal_sees_a_bar_and_standard_output_stays_clean(tmp_path: Path) -> None:
    corpus = corpus_in(tmp_path / "corpus.jsonl", 40)
    ours, theirs = pty.openpty()
    done = subprocess.run(
        command("embed", corpus, "--field", "text", "--out", tmp_path / "out.npy", "--json"),
        cwd=ROOT,
        env={**environment(), "TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=PATIENCE,
        check=False,
    )
    os.close(theirs)
    seen = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "40/40" in seen
    assert json.loads(done.stdout)["rows"] == 40


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["embed"], 2, "error: give either a FILE"),
        (["embed", "/no/such/file"], 2, "No such file"),
        (["embed", "--text", "a", "--model", "/no/such/model"], 2, "/no/such/model"),
        (["embed", "--text", "a", "--device", "cuda:9"], 2, "cuda:9"),
        (["warm", os.devnull], 2, "--cache-file"),
        (["--port", "-1"], 2, "--port: "),
    ],
)
def test_what_is_wrong_is_one_line_on_standard_error(
    arguments: Sequence[str], status: int, said: str
) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_warmed_cache_answers_the_next_process(tmp_path: Path) -> None:
    corpus = corpus_in(tmp_path / "corpus.jsonl", 30)
    arguments = ["warm", corpus, "--field", "text", "--cache-file", tmp_path / "cache", "--json"]
    first, second = (json.loads(run(*arguments).stdout) for _ in range(2))
    assert (first["were_cached"], second["were_cached"]) == (0, 30)
    assert first["tokens"] == second["tokens"] > 100


def test_a_measurement_says_how_fast_this_machine_is() -> None:
    done = run("bench", "--texts", 40, "--concurrency", 8, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert (result["backend"], result["device"], result["texts"]) == ("onnx", "cpu", 40)
    assert result["tokens_per_second"] > result["texts_per_second"] > 0
