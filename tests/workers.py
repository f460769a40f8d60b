"""Obedient backends in worker processes, what to ask of them, and what they leave behind."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from shared.infrastructure.local_embeddings import LocalEmbeddingConfig, TokenizeOptions
from shared.infrastructure.local_embeddings.worker import ProcessBackend
from tests.worker_backends import open_obedient

Open = Callable[..., ProcessBackend]


@contextlib.contextmanager
def opening(room: Path) -> Iterator[Open]:
    """Lend a function that opens obedient backends in workers, and close them afterwards."""
    opened: list[ProcessBackend] = []

    def open_(size: int = 1, **options: object) -> ProcessBackend:
        config = LocalEmbeddingConfig(cache_dir=room, threads=3)
        opened.append(ProcessBackend(config, size, open_obedient, **options))
        return opened[-1]

    yield open_
    for backend in opened:
        backend.close()


def ask(backend: ProcessBackend, *texts: str) -> list[list[float]]:
    tokens = backend.tokenize(texts, TokenizeOptions())
    vectors = np.full((len(texts), 2), np.nan, np.float32)
    backend.forward(tokens, vectors)
    return vectors.tolist()


def answer(*texts: str) -> list[list[float]]:
    return [[sum(map(ord, text)), len(text)] for text in texts]


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that another process does."""
    while not condition():
        time.sleep(0.002)


def waiting(room: Path) -> list[int]:
    return [int(path.name.split()[1]) for path in room.glob("waiting *")]


def traces(room: Path, what: str) -> int:
    return len(list(room.glob(f"{what} *")))


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def children() -> set[int]:
    listed = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for path in listed for pid in path.read_text().split()}


def descriptors(pid: int) -> list[str]:
    return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]


def resources() -> tuple[set[int], int, int]:
    # Threads of an engine that another test has just closed may still be ending.
    names = [thread.name for thread in threading.enumerate()]
    threads = sum(not name.startswith(("prepare-", "embed-")) for name in names)
    return children(), len(descriptors(os.getpid())), threads
