import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from embedding_fakes import embedded, vector_of
from hypothesis import given
from hypothesis import strategies as st

from services.embedding import Embedded, LocalBackend, TextRejectedError
from services.embedding.remote import isolate
from shared.infrastructure.local_embeddings import (
    BackendSpec,
    Cost,
    InferenceError,
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    NonFiniteVectorError,
    TokenBatch,
    TokenizeOptions,
)
from shared.infrastructure.resilience import CircuitOpenError
from shared.infrastructure.testing import FakeClock


@given(st.lists(st.booleans(), min_size=1, max_size=70))
async def test_only_the_texts_to_blame_fail_and_the_order_is_kept(good: list[bool]) -> None:
    texts = [f"{'good' if is_good else 'bad'} {index}" for index, is_good in enumerate(good)]

    async def send(batch: Sequence[str]) -> list[Embedded]:
        if any(text.startswith("bad") for text in batch):
            raise TextRejectedError(f"bad among {len(batch)}")
        return [embedded(text) for text in batch]

    outcomes = await isolate(send, texts)
    assert len(outcomes) == len(texts)
    for text, is_good, outcome in zip(texts, good, outcomes, strict=True):
        if is_good:
            assert isinstance(outcome, Embedded)
            assert np.array_equal(outcome.vector, vector_of(text))
        else:
            assert isinstance(outcome, TextRejectedError)


@pytest.mark.parametrize("position", range(32))
async def test_one_bad_text_is_never_three_failures_in_a_row(position: int) -> None:
    failures: list[bool] = []

    async def send(batch: Sequence[str]) -> list[Embedded]:
        failures.append("bad" in batch)
        if failures[-1]:
            raise TextRejectedError("bad")
        return [embedded(text) for text in batch]

    texts = [str(number) for number in range(32)]
    texts[position] = "bad"
    outcomes = await isolate(send, texts)
    assert [isinstance(outcome, Exception) for outcome in outcomes].index(True) == position
    assert len(failures) == 11
    assert "111" not in "".join(str(int(failed)) for failed in failures)


async def test_an_error_no_text_is_to_blame_for_is_not_tried_again_in_halves() -> None:
    calls = 0

    async def send(_batch: Sequence[str]) -> list[Embedded]:
        nonlocal calls
        calls += 1
        raise CircuitOpenError("open")

    outcomes = await isolate(send, ["a", "b", "c"])
    assert [type(outcome) for outcome in outcomes] == [CircuitOpenError] * 3
    assert calls == 1


class ScriptedModel:
    """A local model of one token a word; `nan` overflows it, `crash` and `broken` end its run."""

    def __init__(self) -> None:
        self.spec = BackendSpec(dimension=8, max_length=4, fingerprint="f")
        self.broken = False
        self._texts: list[str] = []

    def tokenize(self, texts: Sequence[str], _options: TokenizeOptions) -> TokenBatch:
        self._texts = list(texts)
        ids = [[index] * min(4, len(text.split()) or 1) for index, text in enumerate(texts)]
        return TokenBatch.of(ids, [len(text.split()) > 4 for text in texts])

    def forward(self, batch: TokenBatch, out: np.ndarray) -> None:
        texts = [self._texts[batch.ids[start]] for start in batch.offsets[:-1]]
        if self.broken or "crash" in texts:
            raise RuntimeError("kernel exploded")
        out[:] = [np.full(8, np.nan) if text == "nan" else vector_of(text) for text in texts]

    def cost(self, lengths: np.ndarray) -> Cost:
        return Cost(int(lengths.sum()), 0)

    def warm_up(self) -> None:
        pass

    def trim(self) -> None:
        pass

    def close(self) -> None:
        pass


def local(model: ScriptedModel) -> LocalBackend:
    clock = FakeClock()
    config = LocalEmbeddingConfig(model_name="scripted")
    loaded = LocalEmbeddingModel(config, clock=clock, backend_factory=lambda _: model)
    return LocalBackend(loaded, clock=clock)


async def test_a_local_model_says_what_it_read_of_each_text() -> None:
    backend = local(ScriptedModel())
    await backend.start()
    outcomes = await backend.embed_batch(["a b", "a b c d e"])
    facts = [(o.token_count, o.truncated) for o in outcomes if isinstance(o, Embedded)]
    assert facts == [(2, False), (4, True)]
    assert (backend.dimension, backend.fingerprint) == (8, "f")
    await backend.stop()


async def test_poison_fails_alone_and_opens_no_breaker() -> None:
    backend = local(ScriptedModel())
    await backend.start()
    for _ in range(3):
        outcomes = await backend.embed_batch(["a", "crash", "b", "nan"])
        assert [type(outcome) for outcome in outcomes] == [
            Embedded,
            InferenceError,
            Embedded,
            NonFiniteVectorError,
        ]
        await backend.embed_batch(["nan"])
    assert backend.snapshot()["circuit_breaker"]["state"] == "closed"
    assert backend.is_healthy
    await backend.stop()


async def test_a_broken_model_is_unhealthy_and_left_alone() -> None:
    model = ScriptedModel()
    backend = local(model)
    await backend.start()
    model.broken = True
    calls = (backend.embed_batch(["a"]) for _ in range(6))
    errors = [await asyncio.gather(call, return_exceptions=True) for call in calls]
    assert [type(error) for (error,) in errors[:4]] == [InferenceError] * 4
    assert isinstance(errors[-1][0], CircuitOpenError)
    assert not backend.is_healthy
    await backend.stop()


async def test_a_model_that_fails_its_canary_does_not_start() -> None:
    model = ScriptedModel()
    model.broken = True
    with pytest.raises(InferenceError):
        await local(model).start()
