import asyncio
import dataclasses
import threading

import pytest

from shared.infrastructure.local_embeddings import (
    LocalEmbeddingConfig,
    LocalEmbeddingPool,
    ModelLoadError,
)
from shared.infrastructure.resilience import ConfigurationError

CONFIG = LocalEmbeddingConfig(normalize=False, batch_size=1)


async def test_workers_run_the_passes_of_one_call_at_the_same_time_over_one_model(factory):
    meeting = threading.Barrier(3, timeout=10)
    factory.before_forward = meeting.wait
    async with LocalEmbeddingPool(CONFIG, size=3, backend_factory=factory) as pool:
        vectors = await pool.embed(["a", "bb", "ccc", "dd", "e", "f"])
    assert vectors[:, 1].tolist() == [1, 2, 3, 2, 1, 1]
    (backend,) = factory.opened
    assert len(backend.threads) == 3
    assert backend.closed


async def test_calls_run_side_by_side(factory):
    meeting = threading.Barrier(3, timeout=10)
    factory.before_forward = meeting.wait
    async with LocalEmbeddingPool(CONFIG, size=3, backend_factory=factory) as pool:
        answers = await asyncio.gather(*(pool.embed(text) for text in "abc"))
    assert [answer[0, 0] for answer in answers] == [ord("a"), ord("b"), ord("c")]


async def test_a_backend_that_cannot_run_twice_at_once_has_one_worker(factory):
    inside = []

    def alone():
        inside.append(1)
        assert len(inside) == 1
        inside.pop()

    factory.before_forward = alone
    factory.spec = dataclasses.replace(factory.spec, concurrent=False)
    async with LocalEmbeddingPool(CONFIG, size=4, backend_factory=factory) as pool:
        await asyncio.gather(*(pool.embed(["a", "b", "c"]) for _ in range(8)))
        assert pool.get_info()["workers"] == 1
    assert len(factory.opened[0].threads) == 1


async def test_the_model_outlives_the_passes_of_a_cancelled_call(factory, until):
    gate = threading.Event()
    factory.before_forward = gate.wait
    pool = LocalEmbeddingPool(CONFIG, size=2, backend_factory=factory)
    call = asyncio.create_task(pool.embed(["a", "b", "c", "d"]))
    await until(lambda: factory.opened and len(factory.opened[0].batches) == 2)
    unloading = asyncio.create_task(pool.unload())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not factory.opened[0].closed
    gate.set()
    await unloading
    assert factory.opened[0].closed
    assert len(factory.opened[0].batches) == 2


async def test_a_model_that_cannot_load_is_told_of(factory):
    def fail():
        raise OSError("no space left")

    factory.before_open = fail
    pool = LocalEmbeddingPool(CONFIG, size=3, backend_factory=factory)
    with pytest.raises(ModelLoadError, match="no space left"):
        await pool.load()
    assert pool.get_info()["loaded"] is False


async def test_info_tells_how_many_workers_there_are_and_of_what_kind(factory):
    async with LocalEmbeddingPool(CONFIG, size=2, backend_factory=factory) as pool:
        info = pool.get_info()
    assert (info["size"], info["workers"], info["isolation"]) == (2, 2, "thread")
    assert (info["loaded"], info["embedding_dimension"]) == (True, 2)


def test_workers_share_out_the_cpus_unless_told_otherwise():
    assert LocalEmbeddingPool(CONFIG, size=1000).config.threads == 1
    told = CONFIG.model_copy(update={"threads": 3})
    assert LocalEmbeddingPool(told, size=2).config.threads == 3


def test_a_pool_of_nothing_is_refused():
    with pytest.raises(ConfigurationError):
        LocalEmbeddingPool(CONFIG, size=0)
