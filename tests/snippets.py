"""Runs what the documentation shows."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_example(code: str) -> None:
    """Run `code` as a program of its own: it must print something, and no warning."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr == ""
