"""The service's local model in worker processes, and over real weights."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from services.embedding.backends.local import LocalBackend, local_backend
from services.embedding.backends.protocol import Prepared
from services.embedding.options import Reading
from services.embedding.outcome import Embedded
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.local_embeddings import (
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    LocalEmbeddingPool,
    ModelBackend,
    WorkerCrashedError,
)
from tests.embedding_models import HARD, MINILM
from tests.worker_backends import open_obedient
from tests.workers import answer, is_alive, waiting

PLAIN = Reading()
Start = Callable[[int], Awaitable[LocalBackend]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    started: list[LocalBackend] = []

    async def start(workers: int) -> LocalBackend:
        config = LocalEmbeddingConfig(cache_dir=tmp_path)
        backend = LocalBackend(
            LocalEmbeddingPool(config, workers, isolation="process", backend_factory=open_obedient)
        )
        started.append(backend)
        await backend.start()
        return backend

    yield start
    for backend in started:
        await backend.stop()


async def prepared(backend: LocalBackend, *texts: str) -> list[Prepared]:
    return [item for item in await backend.prepare(texts, PLAIN) if isinstance(item, Prepared)]


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - another process cannot set an asyncio.Event
        await asyncio.sleep(0.005)


def numbers(outcomes: object) -> list[list[float]]:
    return [one.vector.tolist() for one in outcomes]  # type: ignore[attr-defined]


async def test_a_worker_killed_in_a_batch_costs_it_one_retry_and_others_nothing(
    start: Start, tmp_path: Path
) -> None:
    backend = await start(2)
    doomed = asyncio.create_task(backend.embed(await prepared(backend, "wait first", "a")))
    await until(lambda: len(waiting(tmp_path)) == 1)
    (victim,) = waiting(tmp_path)
    other = asyncio.create_task(backend.embed(await prepared(backend, "wait second")))
    await until(lambda: len(waiting(tmp_path)) == 2)
    os.kill(victim, signal.SIGKILL)
    await until(lambda: len(waiting(tmp_path)) == 3)  # the retry, in the successor
    assert backend.snapshot()["processes"]["crashes"] == 1
    assert not other.done()
    (tmp_path / "first").touch()
    assert numbers(await doomed) == answer("wait first", "a")
    (tmp_path / "second").touch()
    assert numbers(await other) == answer("wait second")
    workers = backend.snapshot()["processes"]
    assert (workers["crashes"], workers["restarts"]) == (1, 1)
    assert backend.is_healthy


async def test_it_is_back_within_seconds_when_its_only_worker_is_killed(start: Start) -> None:
    backend = await start(1)
    items = await prepared(backend, "back again")
    (pid,) = backend.snapshot()["processes"]["pids"]
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not is_alive(pid))
    began = time.monotonic()
    assert numbers(await backend.embed(items)) == answer("back again")
    assert time.monotonic() - began < 30  # where nothing else runs it is under a second
    await backend.check_health()
    assert backend.is_healthy


async def test_a_text_that_kills_workers_fails_alone_in_a_batch_of_32(start: Start) -> None:
    backend = await start(2)
    texts = [f"text {number}" for number in range(32)]
    texts[13] = "exit 3"
    outcomes = await backend.embed(await prepared(backend, *texts))
    assert isinstance(outcomes[13], WorkerCrashedError)
    good = [row for row in range(32) if row != 13]
    assert numbers(outcomes[row] for row in good) == answer(*(texts[row] for row in good))
    assert backend.snapshot()["circuit_breaker"]["state"] == "closed"
    assert backend.is_healthy


@pytest.mark.parametrize("workers", [None, 2])
async def test_a_text_has_one_vector_whatever_is_prepared_beside_it(workers: int | None) -> None:
    settings = EmbeddingSettings(model_name=str(MINILM), workers=workers)
    backend = local_backend(settings)
    await backend.start()
    items = await prepared(backend, *HARD)
    ids = [tuple(backend.token_ids(item).tolist()) for item in items]
    verbatim = await backend.prepare(ids, PLAIN)
    together = await backend.embed(items)
    same = await backend.embed([item for item in verbatim if isinstance(item, Prepared)])
    config = LocalEmbeddingConfig(
        model_name=str(MINILM), backend=ModelBackend.ONNX, normalize=False
    )
    async with LocalEmbeddingModel(config) as model:
        expected = await model.embed(HARD)
        counts = await model.count_tokens(HARD)
    for row, (item, one, other) in enumerate(zip(items, together, same, strict=True)):
        assert isinstance(one, Embedded)
        assert isinstance(other, Embedded)
        (alone,) = await backend.embed([item])
        assert isinstance(alone, Embedded)
        for vector in (one.vector, other.vector, alone.vector):
            assert np.abs(vector - expected[row]).max() < 2e-5
        assert one.token_count == item.tokens == min(256, counts[row])
        assert one.truncated == (counts[row] > 256)
    now = backend.prepare_now(HARD[2:4], PLAIN)
    assert now is not None
    assert [one.identity for one in now if isinstance(one, Prepared)] == [
        item.identity for item in items[2:4]
    ]
    await backend.stop()
