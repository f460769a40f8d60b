import asyncio
import threading

import pytest

from shared.infrastructure.local_embeddings import (
    LocalEmbeddingConfig,
    LocalEmbeddingPool,
    ModelLoadError,
)
from shared.infrastructure.resilience import ConfigurationError

CONFIG = LocalEmbeddingConfig(normalize=False)


async def test_a_call_goes_whole_to_the_least_loaded_copy(factory, until):
    gate = threading.Event()
    factory.before_forward = gate.wait
    async with LocalEmbeddingPool(CONFIG, size=2, backend_factory=factory) as pool:
        calls = [asyncio.create_task(pool.embed(["a" * 8, "b" * 8]))]
        await until(lambda: any(backend.batches for backend in factory.opened))
        calls.append(asyncio.create_task(pool.embed("c")))
        await until(lambda: all(backend.batches for backend in factory.opened))
        calls.append(asyncio.create_task(pool.embed("d")))
        gate.set()
        first, second, third = await asyncio.gather(*calls)
    assert first[:, 0].tolist() == [8 * ord("a"), 8 * ord("b")]
    assert (second[0, 0], third[0, 0]) == (ord("c"), ord("d"))
    served = sorted(
        sorted(text for batch in backend.batches for text in batch) for backend in factory.opened
    )
    assert served == [["a" * 8, "b" * 8], ["c", "d"]]


async def test_copies_work_at_the_same_time(factory):
    meeting = threading.Barrier(3, timeout=10)
    factory.before_forward = meeting.wait
    async with LocalEmbeddingPool(CONFIG, size=3, backend_factory=factory) as pool:
        await asyncio.gather(*(pool.embed(text) for text in "abc"))
    assert all(backend.closed for backend in factory.opened)


async def test_if_one_copy_cannot_load_the_others_are_unloaded(factory):
    def fail_the_second():
        if factory.attempts == 2:
            raise OSError("out of memory")

    factory.before_open = fail_the_second
    pool = LocalEmbeddingPool(CONFIG, size=3, backend_factory=factory)
    with pytest.raises(ModelLoadError, match="out of memory"):
        await pool.load()
    assert len(factory.opened) == 2
    assert all(backend.closed for backend in factory.opened)
    assert pool.get_info()["loaded"] is False


async def test_info_tells_of_every_copy(factory):
    async with LocalEmbeddingPool(CONFIG, size=2, backend_factory=factory) as pool:
        info = pool.get_info()
    assert (info["size"], info["loaded"], info["embedding_dimension"]) == (2, True, 2)
    assert [model["loaded"] for model in info["models"]] == [True, True]


def test_copies_share_out_the_cpus_unless_told_otherwise():
    assert LocalEmbeddingPool(CONFIG, size=1000).config.threads == 1
    told = CONFIG.model_copy(update={"threads": 3})
    assert LocalEmbeddingPool(told, size=2).config.threads == 3


def test_a_pool_of_nothing_is_refused():
    with pytest.raises(ConfigurationError):
        LocalEmbeddingPool(CONFIG, size=0)
