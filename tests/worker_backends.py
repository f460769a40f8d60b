"""Backends for worker processes, which import them: their texts say what befalls them."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shared.infrastructure.local_embeddings import (
    BackendSpec,
    InvalidTextError,
    LocalEmbeddingConfig,
    ModelNotFoundError,
    TokenBatch,
    TokenizeOptions,
)
from shared.infrastructure.local_embeddings.vectors import Vectors


class ObedientBackend:
    """A model of two numbers a text: the sum of its characters, and how many there are.

    Before it answers it does what a text orders; `config.cache_dir` is where it leaves traces.
    """

    spec = BackendSpec(dimension=2, max_length=100, batch_tokens=64, fingerprint="obedient")

    def __init__(self, config: LocalEmbeddingConfig) -> None:
        self.spec = replace(self.spec, token_bytes=config.threads or 0)
        if config.cache_dir is None:
            raise ValueError("an obedient backend needs a room for its traces")
        self.room = config.cache_dir

    def tokenize(self, texts: Sequence[str], options: TokenizeOptions) -> TokenBatch:
        for index, text in enumerate(texts):
            if text.startswith("tokenize: "):
                self.obey(text.removeprefix("tokenize: "))
            if not text.isprintable():
                raise InvalidTextError(f"text {index} is bad", index)
        return TokenBatch.of([[ord(character) for character in text] for text in texts])

    def forward(self, batch: TokenBatch, out: Vectors) -> None:
        rows = [row.tolist() for row in np.split(batch.ids, batch.offsets[1:-1])]
        for row in rows:
            self.obey("".join(map(chr, row)))
        out[:] = [[sum(row), len(row)] for row in rows]

    def warm_up(self) -> None:
        self.trace("warmed up")

    def trim(self) -> None:
        self.trace("trimmed")

    def close(self) -> None:
        self.trace("closed")

    def trace(self, what: str) -> None:
        (self.room / f"{what} {os.getpid()}").touch()

    def obey(self, order: str) -> None:
        match order.split():
            case ["exit", status]:
                os._exit(int(status))
            case ["abort"]:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                os.abort()
            case ["die", "once"] if not (self.room / "died").exists():
                (self.room / "died").touch()
                os._exit(1)
            case ["wait", name]:
                self.trace("waiting")
                while not (self.room / name).exists():
                    time.sleep(0.001)
            case ["print"]:
                print("polluted", flush=True)  # noqa: T201
            case ["run", "out"]:
                raise np._core._exceptions._ArrayMemoryError((2**60,), np.dtype(np.float32))  # type: ignore[attr-defined]
            case ["fail"]:
                raise LookupError("no such thing")
            case _:
                pass


def open_obedient(config: LocalEmbeddingConfig) -> ObedientBackend:
    """Open it; a trace called `broken` in its room is the end of the process."""
    backend = ObedientBackend(config)
    if (backend.room / "broken").exists():
        backend.trace("started")
        os._exit(7)
    return backend


def open_missing(config: LocalEmbeddingConfig) -> ObedientBackend:
    raise ModelNotFoundError(f"nothing is called {config.model_name}")


def open_broken(config: LocalEmbeddingConfig) -> ObedientBackend:
    raise LookupError("no such thing")


def open_dying(config: LocalEmbeddingConfig) -> ObedientBackend:
    os._exit(7)


def open_each_another(config: LocalEmbeddingConfig) -> ObedientBackend:
    backend = ObedientBackend(config)
    backend.spec = replace(backend.spec, fingerprint=f"of {os.getpid()}")
    return backend


def open_never(config: LocalEmbeddingConfig) -> ObedientBackend:
    while True:
        time.sleep(60)
