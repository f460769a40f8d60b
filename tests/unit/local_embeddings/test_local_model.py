import asyncio
import sys
import threading

import numpy as np
import pytest

from shared.infrastructure.local_embeddings import (
    InferenceError,
    InvalidTextError,
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    ModelLoadError,
    ModelNotFoundError,
    NonFiniteVectorError,
)
from shared.infrastructure.resilience import BulkheadFullError, CircuitOpenError, MissingExtraError


def scripted(factory, **options):
    config = LocalEmbeddingConfig(**({"normalize": False} | options))
    return LocalEmbeddingModel(config, backend_factory=factory)


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_vectors_come_in_the_order_of_the_texts_whatever_the_batches(factory):
    texts = ["dddd", "a", "", "ccc", "bbbbbbbbbbbb", "aa", "e"]
    async with scripted(factory, batch_size=2) as model:
        batch = await model.embed_batch(texts)
    assert batch.vectors[:, 1].tolist() == [4, 1, 0, 3, 8, 2, 1]
    assert batch.vectors[0, 0] == 4 * ord("d")
    assert batch.token_counts == (4, 1, 0, 3, 8, 2, 1)
    assert batch.truncated == (False, False, False, False, True, False, False)


async def test_embed_scales_to_length_one_and_leaves_a_zero_vector_zero(factory):
    async with scripted(factory, normalize=True) as model:
        vectors = await model.embed(["abc", ""])
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1.0, 0.0])


async def test_a_plain_string_is_one_text_and_no_texts_give_no_rows(factory):
    async with scripted(factory) as model:
        assert (await model.embed("abc")).shape == (1, 2)
        assert (await model.embed([])).shape == (0, 2)


@pytest.mark.parametrize(
    ("texts", "index"),
    [(["a", None], 1), ([b"a"], 0), (b"abc", None), (["a", ["b"]], 1), (7, None), ({"a": 1}, None)],
)
async def test_what_is_no_text_is_refused_by_name(factory, texts, index):
    async with scripted(factory) as model:
        with pytest.raises(InvalidTextError) as caught:
            await model.embed(texts)
    assert caught.value.index == index
    assert factory.opened[0].batches == []


async def test_a_list_that_changes_meanwhile_changes_nothing(factory):
    gate = threading.Event()
    factory.before_open = gate.wait
    texts = ["a", "bb"]
    model = scripted(factory)
    call = asyncio.create_task(model.embed(texts))
    await turns()
    texts.clear()
    gate.set()
    assert (await call)[:, 1].tolist() == [1, 2]
    await model.unload()


async def test_embed_loads_by_itself_also_after_an_unload(factory):
    model = scripted(factory)
    await model.embed("a")
    await model.unload()
    assert factory.opened[0].closed
    assert model.get_info()["loaded"] is False
    await model.embed("a")
    assert model.get_info()["loaded"] is True
    assert factory.attempts == 2
    await model.unload()


async def test_a_model_is_warm_when_it_is_loaded(factory):
    async with scripted(factory):
        assert factory.opened[0].warm_ups == 1


async def test_a_model_loads_without_memory_to_warm_up(factory, monkeypatch):
    def fail(_backend):
        raise MemoryError

    monkeypatch.setattr(factory.backend, "warm_up", fail)
    async with scripted(factory) as model:
        assert (await model.embed("abc")).shape == (1, 2)
        assert factory.opened[0].trims == 1


async def test_callers_at_the_same_time_share_one_load(factory):
    model = scripted(factory)
    await asyncio.gather(model.load(), model.load(), model.embed("a"), model.embed("b"))
    await model.load()
    assert factory.attempts == 1
    await model.unload()


async def test_a_cancelled_caller_leaves_the_load_to_the_others(factory):
    gate = threading.Event()
    factory.before_open = gate.wait
    model = scripted(factory)
    first, second = asyncio.create_task(model.load()), asyncio.create_task(model.load())
    await turns()
    first.cancel()
    await turns()
    gate.set()
    await second
    assert first.cancelled()
    assert factory.attempts == 1
    await model.unload()


async def test_a_failed_load_tells_every_waiter_and_the_next_call_tries_again(factory):
    def fail():
        raise OSError("disk on fire")

    factory.before_open = fail
    model = scripted(factory)
    outcomes = await asyncio.gather(model.load(), model.embed("a"), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ModelLoadError, ModelLoadError]
    assert "disk on fire" in str(outcomes[0])
    factory.before_open = lambda: None
    assert (await model.embed("a")).shape == (1, 2)
    await model.unload()


async def test_a_wrong_setting_is_reported_as_it_is_however_often(factory):
    def fail():
        raise ModelNotFoundError("no such model")

    factory.before_open = fail
    model = scripted(factory)
    for _ in range(7):
        with pytest.raises(ModelNotFoundError, match="no such model"):
            await model.embed("a")


async def test_unload_waits_for_running_calls_and_new_calls_load_again(factory, until):
    gate = threading.Event()
    factory.before_forward = gate.wait
    model = scripted(factory)
    running = asyncio.create_task(model.embed(["a"] * 40))
    await until(lambda: factory.opened and factory.opened[0].batches)
    unloading = asyncio.create_task(model.unload())
    await turns()
    late = asyncio.create_task(model.embed("b"))
    await turns()
    assert not unloading.done()
    assert not factory.opened[0].closed
    gate.set()
    await asyncio.gather(running, unloading, late)
    assert factory.opened[0].closed
    assert ["b"] not in factory.opened[0].batches
    assert factory.opened[1].batches == [["b"]]
    await model.unload()


async def test_unload_may_be_called_at_any_time_and_as_often_as_one_likes(factory):
    model = scripted(factory)
    await model.unload()
    loading = asyncio.create_task(model.load())
    await turns()
    await asyncio.gather(model.unload(), model.unload(), loading)
    assert model.get_info()["loaded"] is False
    assert [backend.closed for backend in factory.opened] == [True]


async def test_a_load_may_end_after_the_unload_that_overtook_it(factory):
    gate, closed = threading.Event(), threading.Event()
    factory.before_open = gate.wait
    factory.on_close = closed.set
    model = scripted(factory)
    tasks = [asyncio.create_task(model.load()), asyncio.create_task(model.unload())]
    await turns()
    gate.set()
    assert closed.wait(timeout=10)  # before the loop has heard of the load
    await asyncio.gather(*tasks)
    assert model.get_info()["loaded"] is False


async def test_a_cancelled_unload_still_closes_the_model(factory, until):
    gate = threading.Event()
    factory.before_forward = gate.wait
    model = scripted(factory)
    call = asyncio.create_task(model.embed("a"))
    await until(lambda: factory.opened and factory.opened[0].batches)
    unloading = asyncio.create_task(model.unload())
    await turns()
    unloading.cancel()
    gate.set()
    await call
    await until(lambda: factory.opened[0].closed)
    await model.embed("b")
    assert factory.attempts == 2
    factory.before_forward = lambda: None
    await model.unload()


async def test_all_work_is_done_on_one_thread_that_is_not_the_loops(factory):
    async with scripted(factory) as model:
        await asyncio.gather(*(model.embed(["a", "b"]) for _ in range(8)))
        assert len(factory.opened[0].threads) == 1
        assert threading.current_thread().name not in factory.opened[0].threads


async def test_the_loop_stays_free_while_the_model_works(factory, until):
    gate = threading.Event()
    factory.before_forward = gate.wait
    async with scripted(factory) as model:
        call = asyncio.create_task(model.embed("a"))
        await until(lambda: factory.opened[0].batches)
        await turns()
        assert not call.done()
        gate.set()
        await call


async def test_a_waiting_call_that_is_cancelled_never_starts(factory, until):
    gate = threading.Event()
    factory.before_forward = gate.wait
    async with scripted(factory) as model:
        running = asyncio.create_task(model.embed("a"))
        await until(lambda: factory.opened[0].batches)
        waiting = asyncio.create_task(model.embed("b"))
        await turns()
        waiting.cancel()
        await turns()
        gate.set()
        await running
        await model.embed("c")
        assert factory.opened[0].batches == [["a"], ["c"]]


async def test_a_long_call_lets_a_short_one_through(factory, until):
    gate = threading.Event()
    factory.before_forward = gate.wait
    model = scripted(factory, batch_size=1)
    long = asyncio.create_task(model.embed(["aaaa", "aaa", "aa", "a"]))
    await until(lambda: factory.opened and factory.opened[0].batches)
    short = asyncio.create_task(model.embed("b"))
    await turns()
    gate.set()
    await asyncio.gather(long, short)
    # One pass of the long call was in line already, so that the worker never waits for the loop.
    assert factory.opened[0].batches == [["aaaa"], ["aaa"], ["b"], ["aa"], ["a"]]
    await model.unload()


async def test_calls_beyond_the_queue_are_refused(factory):
    gate = threading.Event()
    factory.before_forward = gate.wait
    async with scripted(factory, max_concurrent=1, max_queue=1) as model:
        calls = [asyncio.create_task(model.embed("a")) for _ in range(2)]
        await turns()
        with pytest.raises(BulkheadFullError):
            await model.embed("a")
        gate.set()
        await asyncio.gather(*calls)


async def test_an_error_of_the_library_fails_its_call_and_no_other(factory):
    async with scripted(factory) as model:
        factory.opened[0].poison = "poison"
        outcomes = await asyncio.gather(
            model.embed("good"), model.embed("poison"), model.embed("fine"), return_exceptions=True
        )
        assert isinstance(outcomes[1], InferenceError)
        assert "kernel exploded" in str(outcomes[1])
        assert [outcomes[0].shape, outcomes[2].shape] == [(1, 2), (1, 2)]


async def test_a_model_that_keeps_failing_is_given_a_rest(factory):
    async with scripted(factory) as model:
        factory.opened[0].before_forward = lambda: 1 / 0
        for _ in range(5):
            with pytest.raises(InferenceError):
                await model.embed("a")
        with pytest.raises(CircuitOpenError):
            await model.embed("a")
        assert model.get_info()["circuit_breaker"]["state"] == "open"


async def test_a_vector_that_is_no_number_is_an_error_of_that_text_alone(factory):
    async with scripted(factory) as model:
        factory.opened[0].answer_nan = True
        for _ in range(6):
            with pytest.raises(NonFiniteVectorError) as caught:
                await model.embed(["a", "b"])
            assert caught.value.indexes == (0, 1)


async def test_info_keeps_its_keys_before_and_after_loading(factory):
    model = scripted(factory, model_name="m", batch_size=4)
    before = model.get_info()
    async with model:
        loaded = model.get_info()
    assert before.keys() == loaded.keys() == model.get_info().keys()
    assert before["embedding_dimension"] is None
    assert (loaded["embedding_dimension"], loaded["max_batch_tokens"]) == (2, 8)
    assert model.get_info()["embedding_dimension"] == 2
    assert scripted(factory, max_batch_tokens=99).get_info()["max_batch_tokens"] == 99


def test_a_model_belongs_to_no_event_loop(factory):
    model = scripted(factory)
    asyncio.run(model.load())
    assert asyncio.run(model.embed("a")).shape == (1, 2)
    asyncio.run(model.unload())
    assert factory.opened[0].closed


@pytest.mark.parametrize(
    ("backend", "module", "extra"),
    [
        ("sentence_transformers", "sentence_transformers", "torch"),
        ("transformers", "torch", "torch"),
        ("onnx", "onnxruntime", "onnx"),
        ("onnx", "tokenizers", "onnx"),
        ("fastembed", "fastembed", "fastembed"),
    ],
)
async def test_a_library_that_is_missing_is_named_with_its_extra(
    monkeypatch, tmp_path, backend, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    model = LocalEmbeddingModel(LocalEmbeddingConfig(backend=backend, cache_dir=tmp_path))
    with pytest.raises(MissingExtraError, match=rf"morgan-sdk\[{extra}\]"):
        await model.load()
