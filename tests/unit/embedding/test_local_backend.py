"""The local model as the service sees it."""

import asyncio
import json
from collections.abc import Sequence

import numpy as np
import pytest

from services.embedding.backends.local import LocalBackend, local_backend
from services.embedding.backends.protocol import Prepared
from services.embedding.options import Item, Reading
from services.embedding.outcome import Embedded
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.local_embeddings import (
    BackendSpec,
    InferenceError,
    InvalidTextError,
    InvalidTokensError,
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    LocalEmbeddingPool,
    NonFiniteVectorError,
    TextTooLongError,
    TokenBatch,
    TokenizeOptions,
    Truncation,
)
from shared.infrastructure.local_embeddings.devices import usable_cpus
from shared.infrastructure.resilience import CircuitOpenError
from shared.infrastructure.testing import FakeClock

WORDS = ["a", "b", "c", "d", "e", "nan", "crash", "ready?", "q:"]
PLAIN = Reading()


class ScriptedModel:
    """A model of one token a word; `nan` overflows it, `crash` and `broken` end its run."""

    spec = BackendSpec(
        dimension=4,
        max_length=4,
        fingerprint="f",
        batch_tokens=64,
        prompts={"query": "q: "},
        vocabulary=len(WORDS),
        tokenizes_anywhere=True,
    )

    def __init__(self) -> None:
        self.broken = False
        self.closed = False
        self.passes: list[int] = []

    def tokenize(self, texts: Sequence[str], options: TokenizeOptions) -> TokenBatch:
        rows: list[list[int]] = []
        for index, text in enumerate(texts):
            words = ((options.prompt or "") + text).split()
            if unknown := set(words) - set(WORDS):
                raise InvalidTextError(f"text {index} has {unknown}", index)
            if options.truncation is Truncation.NONE and len(words) > 4:
                raise TextTooLongError(index, len(words), 4)
            rows.append([WORDS.index(word) for word in words])
        cut = [row[-4:] if options.truncation is Truncation.START else row[:4] for row in rows]
        return TokenBatch.of(cut, [len(row) > 4 for row in rows])

    def forward(self, batch: TokenBatch, out: np.ndarray) -> None:
        rows = [part.ids.tolist() for part in batch.split()]
        self.passes.append(len(rows))
        if self.broken or any(WORDS.index("crash") in row for row in rows):
            raise RuntimeError("kernel exploded")
        for row, vector in zip(rows, out, strict=True):
            vector[:] = np.nan if WORDS.index("nan") in row else sum(row)

    def warm_up(self) -> None:
        pass

    def trim(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def local(model: ScriptedModel) -> LocalBackend:
    clock = FakeClock()
    config = LocalEmbeddingConfig(model_name="scripted")
    return LocalBackend(
        LocalEmbeddingModel(config, clock=clock, backend_factory=lambda _: model), clock=clock
    )


@pytest.fixture
async def model():
    return ScriptedModel()


@pytest.fixture
async def backend(model):
    backend = local(model)
    await backend.start()
    yield backend
    await backend.stop()
    assert model.closed


async def prepared(backend: LocalBackend, *items: Item, reading: Reading = PLAIN) -> list[Prepared]:
    return [item for item in await backend.prepare(items, reading) if isinstance(item, Prepared)]


async def test_facts_are_those_of_the_model(backend):
    facts = backend.facts
    assert (facts.model_name, facts.fingerprint, facts.dimension) == ("scripted", "f", 4)
    assert (facts.max_length, facts.max_rows, facts.max_tokens) == (4, 32, 64)
    assert (facts.concurrency, facts.packed, facts.batch_invariant) == (1, False, True)
    assert (facts.prompts, facts.default_prompt) == ({"query": "q: "}, "")
    json.dumps(facts.details)
    with pytest.raises(RuntimeError, match="not been started"):
        _ = local(ScriptedModel()).facts


async def test_a_model_says_what_it_read_of_each_text(backend):
    items = await prepared(backend, "a b", "a b c d e", (1, 2, 3))
    assert [item.tokens for item in items] == [2, 4, 3]
    assert backend.token_ids(items[2]).tolist() == [1, 2, 3]
    outcomes = await backend.embed(items)
    facts = [(one.vector[0], one.token_count, one.truncated) for one in outcomes]
    assert facts == [(1, 2, False), (6, 4, True), (6, 3, False)]
    assert all(one.vector.dtype == np.float32 for one in outcomes)


@pytest.mark.parametrize(
    ("items", "reading"),
    [
        (["a b"], PLAIN),
        (["a", "b c"], Reading("q: ")),
        (["a b c d e"], Reading("", Truncation.END)),
        ([(1, 2), (3,)], PLAIN),
        ([(1, 2, 3, 4, 5)], Reading("", Truncation.START)),
    ],
)
async def test_what_is_prepared_at_once_is_what_would_be_later(backend, items, reading):
    now = backend.prepare_now(items, reading)
    assert now is not None
    later = await backend.prepare(items, reading)
    for one, other in zip(now, later, strict=True):
        assert (one.tokens, one.identity, one.group) == (other.tokens, other.identity, other.group)
        assert backend.token_ids(one).tolist() == backend.token_ids(other).tolist()


@pytest.mark.parametrize("items", [["a " * 200], ["a"] * 9, [(1,) * 2000], ["a", (1,)], ["?"]])
async def test_what_takes_longer_is_prepared_later(backend, items):
    assert backend.prepare_now(items, PLAIN) is None
    assert len(await backend.prepare(items, PLAIN)) == len(items)


async def test_items_that_are_read_alike_are_known_by_their_identity(backend):
    same, spaced, ids, whole, cut, start = await prepared(
        backend, "a b c d", " a  b c d", (0, 1, 2, 3), "b c", "a b c d e", "b"
    )
    assert same.identity == spaced.identity == ids.identity
    # Those that are read alike are told apart if something else was left out of one.
    assert len({one.identity for one in (same, whole, cut, start)}) == 4


async def test_a_bad_item_is_an_error_in_its_place(backend):
    items: list[Item] = ["a", "unknown", (1, 99), "b c", (), (2,)]
    first, text, ids, other, empty, last = await backend.prepare(items, PLAIN)
    assert [first.tokens, other.tokens, last.tokens] == [1, 2, 1]
    assert type(text) is InvalidTextError
    assert isinstance(ids, InvalidTokensError)
    assert isinstance(empty, InvalidTokensError)
    none = Reading("", Truncation.NONE)
    good, *long = await backend.prepare(["a", "a b c d e", (1, 1, 1, 1, 1)], none)
    assert isinstance(good, Prepared)
    assert [type(error) for error in long] == [TextTooLongError] * 2
    assert [error.index for error in long] == [0, 0]


async def test_poison_fails_alone_and_opens_no_breaker(backend):
    texts = ["a", "crash", "b", "nan", *"abcde" * 5, "d", "e", "c"]
    items = await prepared(backend, *texts)
    alone = await prepared(backend, "nan")
    assert len(items) == 32
    for _ in range(3):
        outcomes = await backend.embed(items)
        failed = {row: type(one) for row, one in enumerate(outcomes) if isinstance(one, Exception)}
        assert failed == {1: InferenceError, 3: NonFiniteVectorError}
        for text, one in zip(texts, outcomes, strict=True):
            if isinstance(one, Embedded):
                assert one.vector[0] == WORDS.index(text)
        (nan,) = await backend.embed(alone)
        assert isinstance(nan, NonFiniteVectorError)
    assert backend.snapshot()["circuit_breaker"]["state"] == "closed"
    assert backend.is_healthy


async def test_a_broken_model_is_unhealthy_and_left_alone_until_it_is_well(backend, model):
    items = await prepared(backend, "a")
    model.broken = True
    errors = [
        (await asyncio.gather(backend.embed(items), return_exceptions=True))[0] for _ in range(6)
    ]
    assert [type(error) for error in errors[:4]] == [InferenceError] * 4
    assert isinstance(errors[-1], CircuitOpenError)
    assert not backend.is_healthy
    snapshot = backend.snapshot()
    assert snapshot["circuit_breaker"]["state"] == "open"
    json.dumps(snapshot)


async def test_a_model_that_fails_its_canary_does_not_start():
    model = ScriptedModel()
    model.broken = True
    backend = local(model)
    with pytest.raises(InferenceError):
        await backend.start()
    await backend.stop()
    assert model.closed


def test_settings_of_a_local_model_are_honoured(tmp_path):
    wanted = {
        "model_name": "m",
        "backend": "transformers",
        "device": "cuda:1",
        "dtype": "bfloat16",
        "threads": 3,
        "batch_size": 7,
        "max_batch_tokens": 99,
        "model_root": tmp_path,
        "manifest": tmp_path / "sums",
        "cache_dir": tmp_path / "cache",
    }
    model = local_backend(EmbeddingSettings(**wanted))._model
    assert {name: getattr(model.config, name) for name in wanted} == wanted
    assert type(model) is LocalEmbeddingModel  # a GPU's passes are as many as suit it
    # A number of rows that nobody asked for is no bound where tokens are.
    unset = local_backend(EmbeddingSettings())._model.config
    assert "batch_size" not in unset.model_fields_set


@pytest.mark.parametrize(
    ("settings", "size", "isolation"),
    [
        ({"workers": 3}, 3, "thread"),
        ({"isolation": "process", "device": "cpu"}, min(2, usable_cpus()), "process"),
        ({"isolation": "process", "device": "cuda"}, 1, "process"),
        ({"workers": 2, "isolation": "process"}, 2, "process"),
        ({"device": "cpu"}, min(4, usable_cpus()), "thread"),
        ({"device": "cpu", "threads": 10_000}, 1, "thread"),
    ],
)
def test_workers_and_isolation_ask_for_a_pool(settings, size, isolation):
    model = local_backend(EmbeddingSettings(**settings))._model
    assert isinstance(model, LocalEmbeddingPool)
    info = model.get_info()
    assert (info["size"], info["isolation"]) == (size, isolation)
