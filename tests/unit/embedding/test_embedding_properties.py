import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from embedding_fakes import FakeBackend, unit, vector_of
from hypothesis import given, settings
from hypothesis import strategies as st

from services.embedding import (
    CacheUse,
    Embedded,
    Embeddings,
    EmbeddingSettings,
    EmbedOptions,
    Lane,
    Prepared,
    ProductionEmbeddingService,
    TextRejectedError,
)

TEXTS = ["", "a", "A", "b", "B", "aa", "a b", "ccc", "dddd", "eeeee", "bad", "worse"]
POISON = {"bad", "worse"}


@dataclass(frozen=True)
class Call:
    texts: list[str]
    delay: int
    patience: int | None
    lane: Lane | None
    cache: CacheUse


calls = st.builds(
    Call,
    st.lists(st.sampled_from(TEXTS), max_size=12),
    delay=st.integers(0, 30),
    patience=st.none() | st.integers(0, 20),
    lane=st.none() | st.sampled_from(Lane),
    cache=st.sampled_from(CacheUse),
)


class SlowBackend(FakeBackend):
    """A model that takes some turns for a batch, and knows which texts it is computing."""

    def __init__(self, speed: list[int], at_once: bool, **facts: int) -> None:
        super().__init__(**facts)
        self.poison = POISON
        self.at_once = at_once
        self.now: Counter[str] = Counter()
        self._speed = speed

    async def embed(self, batch: Sequence[Prepared]) -> Sequence[Embedded | Exception]:
        texts = [str(item.payload) for item in batch]
        self.now.update(texts)
        assert max(self.now.values()) == 1, "a text is computed twice at the same time"
        for _ in range(self._speed[len(self.batches) % len(self._speed)]):
            await asyncio.sleep(0)
        outcomes = await super().embed(batch)
        self.now.subtract(texts)
        return outcomes


async def play(service: ProductionEmbeddingService, call: Call) -> None:
    for _ in range(call.delay):
        await asyncio.sleep(0)
    options = EmbedOptions(lane=call.lane, cache=call.cache)
    task = asyncio.create_task(service.embed_batch(call.texts, options))
    if call.patience is not None:
        for _ in range(call.patience):
            await asyncio.sleep(0)
        task.cancel()
    (answer,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(answer, asyncio.CancelledError):
        assert call.patience is not None
    elif isinstance(answer, TextRejectedError):
        assert answer.index is not None
        assert call.texts[answer.index] in POISON
    else:
        assert isinstance(answer, Embeddings)
        assert not POISON.intersection(call.texts)
        assert len(answer.vectors) == len(call.texts)
        for row, text in zip(answer.vectors, call.texts, strict=True):
            assert np.allclose(row, unit(vector_of(text)), atol=1e-6)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    st.lists(calls, min_size=1, max_size=10),
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.sampled_from([0, 1, 3, 1000]),
    st.sampled_from([1, 2, 32]),
    st.sampled_from([1, 3]),
    st.booleans(),
)
def test_each_caller_gets_the_vectors_of_its_own_texts(
    story: list[Call],
    speed: list[int],
    cache_size: int,
    batch_size: int,
    concurrency: int,
    at_once: bool,
) -> None:
    async def main() -> None:
        backend = SlowBackend(speed, at_once, concurrency=concurrency, max_rows=batch_size)
        config = EmbeddingSettings(cache_size=cache_size)
        service = ProductionEmbeddingService(config, backend=backend)
        async with service:
            await asyncio.wait_for(asyncio.gather(*(play(service, call) for call in story)), 10)
        if cache_size > len(TEXTS) and all(call.cache is CacheUse.USE for call in story):
            computed = Counter(text for text in backend.texts if text not in POISON)
            assert max(computed.values(), default=0) <= 1
        metrics = service.get_metrics()
        assert (metrics["flights"], metrics["in_flight"]) == (0, 0)

    asyncio.run(main())
