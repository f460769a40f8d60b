"""A real embedding process, for the tests that need one."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0


class Process:
    """A running embedding process, and where it listens."""

    def __init__(self, *options: str, **settings: str) -> None:
        environ = {name: value for name, value in os.environ.items() if "EMBEDDING" not in name}
        environ |= {f"EMBEDDING_{name.upper()}": value for name, value in settings.items()}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "services.embedding", "--port", "0", *options],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.child.stdout is not None
        announced = re.search(r"http://\S+", self.child.stdout.readline())
        assert announced, self.finish()
        self.url = announced.group()

    def wait_ready(self) -> None:
        give_up = time.monotonic() + PATIENCE
        while httpx.get(f"{self.url}/health/ready").status_code != 200:
            assert time.monotonic() < give_up
            time.sleep(0.05)

    def finish(self) -> tuple[int, str]:
        """Wait for its end, and return its exit status and what it had to say."""
        _, errors = self.child.communicate(timeout=PATIENCE)
        return self.child.returncode, errors


@contextmanager
def process(*options: str, **settings: str) -> Iterator[Process]:
    started = Process(*options, **settings)
    try:
        yield started
    finally:
        started.child.kill()
        started.child.communicate()
