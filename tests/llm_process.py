"""A real LLM process, for the tests that need one."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import httpx

from examples.demo.processes import LlamaHost
from tests.embedding_process import PATIENCE, ROOT


class Process:
    """A running LLM process, and where it listens."""

    def __init__(self, hosts: Iterable[LlamaHost], *options: str, **settings: str) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LLM_")}
        environ |= {f"LLM_{name.upper()}": value for name, value in settings.items()}
        listed = ",".join(f"{host.name}={host.url}" for host in hosts)
        self.child = subprocess.Popen(
            [sys.executable, "-m", "services.llm", "--port", "0", "--hosts", listed, *options],
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

    def metric(self, line: str) -> float:
        found = [
            each
            for each in httpx.get(f"{self.url}/metrics").text.splitlines()
            if each.startswith(f"{line} ")
        ]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    def until(self, line: str, value: float) -> None:
        """Wait until a metric has a value."""
        give_up = time.monotonic() + PATIENCE
        while self.metric(line) != value:
            assert time.monotonic() < give_up
            time.sleep(0.02)

    def finish(self) -> tuple[int, str]:
        """Wait for its end, and return its exit status and what it had to say."""
        _, errors = self.child.communicate(timeout=PATIENCE)
        return self.child.returncode, errors


@contextmanager
def llm_process(hosts: Iterable[LlamaHost], *options: str, **settings: str) -> Iterator[Process]:
    started = Process(hosts, *options, **settings)
    try:
        yield started
    finally:
        started.child.kill()
        started.child.communicate()
