import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.infrastructure.local_embeddings import (
    BackendSpec,
    Cost,
    InferenceError,
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    NonFiniteVectorError,
    OutOfMemoryError,
    TokenBatch,
)
from shared.infrastructure.local_embeddings.errors import WorkerCrashedError
from shared.infrastructure.local_embeddings.limits import Limits
from shared.infrastructure.local_embeddings.memory.governor import MemoryGovernor
from shared.infrastructure.local_embeddings.memory.readings import Gauge, MemoryReading
from shared.infrastructure.local_embeddings.memory.token_budget import TokenBudget
from shared.infrastructure.local_embeddings.passes import Pass


class Fragile:
    """A model of one number a text, its first token; it fails as its script says."""

    def __init__(self, memory=10**9, poison=frozenset(), nan=frozenset()):
        self.spec = BackendSpec(dimension=1, max_length=99, token_bytes=1)
        self.memory, self.poison, self.nan = memory, poison, nan
        self.sizes = []
        self.trims = 0

    def forward(self, batch, out):
        self.sizes.append(len(batch))
        if self.spec.cost(batch.lengths).tokens > self.memory:
            raise MemoryError
        first = batch.ids[batch.offsets[:-1]]
        if self.poison & set(first.tolist()):
            raise ValueError("kernel exploded")
        out[:, 0] = np.where(np.isin(first, list(self.nan)), np.nan, first)

    def trim(self):
        self.trims += 1


def run(backend, count=32, budget=None, governor=None, length=1):
    tokens = TokenBatch.of([[number] * length for number in range(count)])
    rows = np.arange(count)[::-1].copy()
    limits = Limits(count, budget or TokenBudget(10**6), governor or MemoryGovernor())
    return Pass(backend, tokens, rows, limits)()


def expected(count=32, bad=()):
    return [float("nan") if number in bad else number for number in reversed(range(count))]


@given(st.sets(st.integers(0, 31)), st.sets(st.integers(0, 31)))
def test_bad_texts_fail_alone_wherever_they_are(poison, nan):
    good = set(range(32)) - poison - nan
    if len(good) < 29:  # with more bad ones in a row the model is to blame
        good = set(range(32)) - (poison := set(sorted(poison)[:2])) - (nan := set(sorted(nan)[:1]))
    result = run(Fragile(poison=frozenset(poison), nan=frozenset(nan - poison)))
    assert result.failures.keys() == set(range(32)) - good
    np.testing.assert_array_equal(result.vectors[:, 0], expected(bad=set(range(32)) - good))
    for row, failure in result.failures.items():
        assert type(failure) is (InferenceError if row in poison else NonFiniteVectorError)
        assert failure.indexes == (row,)


def test_a_pass_of_one_bad_text_takes_few_more_passes():
    backend = Fragile(poison=frozenset({17}))
    run(backend)
    assert len(backend.sizes) == 11


def test_a_broken_model_is_not_tried_with_every_text():
    backend = Fragile(poison=frozenset(range(1000)))
    result = run(backend, count=256)
    assert len(backend.sizes) < 24
    assert len(result.failures) == 256
    assert np.isnan(result.vectors).all()


def test_a_pass_that_runs_out_of_memory_is_halved_until_it_fits_and_the_next_ones_are_smaller():
    backend, budget = Fragile(memory=9), TokenBudget(32)
    result = run(backend, budget=budget)
    assert not result.failures
    assert result.vectors[:, 0].tolist() == expected()
    assert backend.sizes == [32, 16, 8, 8, 16, 8, 8]
    assert backend.trims == 3
    assert 11 <= budget.current < 16


class Workers(Fragile):
    """A model in processes, that all die of a pass of more than one text."""

    def __init__(self, **ending):
        super().__init__()
        self.ending = ending

    def forward(self, batch, out):
        super().forward(batch, out)
        if len(batch) > 8:
            error = WorkerCrashedError("two workers in a row died")
            vars(error).update(self.ending)
            raise error


def test_workers_that_are_killed_have_run_out_of_memory():
    backend, budget = Workers(was_killed=True), TokenBudget(32)
    assert not run(backend, budget=budget).failures
    assert backend.trims == 3
    assert budget.current < 16


def test_workers_that_die_are_given_fewer_texts():
    backend, budget = Workers(), TokenBudget(32)
    assert not run(backend, budget=budget).failures
    assert (backend.trims, budget.current) == (0, 32)


def test_texts_that_got_no_answer_are_not_waited_for_again():
    backend = Workers(was_silent=True)
    result = run(backend)
    assert backend.sizes == [32]
    assert [failure.indexes for failure in result.failures.values()] == [
        (row,) for row in reversed(range(32))
    ]


def test_a_text_too_long_for_all_memory_fails_alone_and_says_so():
    backend = Fragile(memory=9)
    result = run(backend, count=2, length=10)
    assert {type(failure) for failure in result.failures.values()} == {OutOfMemoryError}


def test_long_texts_that_do_not_fit_say_nothing_of_shorter_ones():
    tokens = TokenBatch.of([[number] * (10 if number < 8 else 1) for number in range(16)])
    limits = Limits(16, TokenBudget(10**6), MemoryGovernor())
    result = Pass(Fragile(memory=9), tokens, np.arange(16), limits)()
    assert sorted(result.failures) == list(range(8))


@pytest.mark.parametrize(
    ("packed", "cost"), [(False, Cost(6, 6 * (10 + 3 * 2))), (True, Cost(4, 4 * (10 + 2)))]
)
def test_what_a_pass_takes_is_told_by_its_lengths(packed, cost):
    spec = BackendSpec(1, 9, packed=packed, token_bytes=10, score_bytes=2)
    assert spec.cost(np.array([3, 1])) == cost


def test_a_pass_that_memory_cannot_hold_is_not_tried_at_all():
    reading = MemoryReading(gauges=(Gauge("cpu", 90, 100),))
    backend = Fragile(memory=10)
    result = run(backend, governor=MemoryGovernor(read=lambda: reading))
    assert not result.failures
    assert max(backend.sizes) <= 10
    assert backend.trims == 0


def scripted(factory, **options):
    config = LocalEmbeddingConfig(**({"normalize": False} | options))
    return LocalEmbeddingModel(config, backend_factory=factory)


async def test_a_call_keeps_what_came_of_the_texts_beside_a_bad_one(factory):
    async with scripted(factory) as model:
        factory.opened[0].poison = "poison"
        batch = await model.embed_batch(["a", "poison", "b"])
        assert list(batch.failures) == [1]
        assert batch.vectors[[0, 2], 0].tolist() == [ord("a"), ord("b")]
        with pytest.raises(InferenceError) as caught:
            await model.embed(["a", "poison", "b"])
        assert caught.value.indexes == (1,)
        assert caught.value.partial.vectors[2, 0] == ord("b")
        assert model.get_info()["circuit_breaker"]["state"] == "closed"


async def test_each_pass_is_told_of_as_it_ends(factory, until):
    gate = threading.Event()
    told = []
    async with scripted(factory, batch_size=2) as model:
        backend = factory.opened[0]
        backend.before_forward = lambda: len(backend.batches) == 1 or gate.wait()
        call = asyncio.create_task(model.embed_batch(["a", "bbb", "cc", "d"], on_rows=told.append))
        await until(lambda: told)
        assert told[0].rows.tolist() == [1, 2]
        assert not call.done()
        gate.set()
        await call
    assert [rows.rows.tolist() for rows in told] == [[1, 2], [0, 3]]


async def test_memory_that_runs_short_is_given_back_before_the_next_pass(factory):
    used = 95
    governor = MemoryGovernor(read=lambda: MemoryReading(gauges=(Gauge("cpu", used, 100),)))
    config = LocalEmbeddingConfig(normalize=False)
    model = LocalEmbeddingModel(config, backend_factory=factory, governor=governor)
    async with model:
        await model.embed("a")
        assert factory.opened[0].trims == 1
        assert model.get_info()["memory"]["devices"]["cpu"]["stage"] == "trim"
