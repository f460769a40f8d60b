import asyncio
from collections.abc import Sequence
from typing import Self

import numpy as np
import pytest
from embedding_fakes import FakeBackend, turns, vector_of

from services.embedding import (
    Embedded,
    EmbeddingCache,
    InvalidReplyError,
    QueueFullError,
    ServiceStoppedError,
)
from services.embedding.batcher import Batcher, BatcherConfig, Outcome
from shared.infrastructure.resilience import deadline
from shared.infrastructure.resilience.timeout import remaining_time
from shared.infrastructure.testing import FakeClock


def keys(*texts: str) -> dict[bytes, str]:
    return {text.encode(): text for text in texts}


class Bench:
    """A running batcher over a fake model that starts out busy with the text `busy`."""

    def __init__(self, cache_size: int = 100, **config: int) -> None:
        self.model = FakeBackend()
        self.cache = EmbeddingCache(cache_size)
        self.clock = FakeClock()
        self.batcher = Batcher(
            self.model.embed_batch, self.cache, BatcherConfig(**config), clock=self.clock
        )

    async def __aenter__(self) -> Self:
        self.batcher.start()
        self.model.open.clear()
        self.first = self.ask("busy")
        await turns()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.model.open.set()
        await self.batcher.stop()

    def ask(self, *texts: str) -> asyncio.Task[dict[bytes, Outcome]]:
        return asyncio.create_task(self.batcher.embed(keys(*texts)))


def assert_right(outcomes: dict[bytes, Outcome], *texts: str) -> None:
    assert outcomes.keys() == keys(*texts).keys()
    for key, outcome in outcomes.items():
        assert isinstance(outcome, Embedded)
        assert np.array_equal(outcome.vector, vector_of(key.decode()))


async def test_whatever_waits_while_the_model_is_busy_goes_in_one_batch() -> None:
    async with Bench() as bench:
        calls = [bench.ask("a"), bench.ask("b", "c"), bench.ask("d")]
        await turns()
        bench.model.open.set()
        for call, texts in zip(calls, ("a", "bc", "d"), strict=True):
            assert_right(await call, *texts)
        assert bench.model.batches == [["busy"], ["a", "b", "c", "d"]]


async def test_an_idle_model_waits_for_nobody() -> None:
    async with Bench() as bench:
        bench.model.open.set()
        await bench.first
        assert_right(await bench.ask("a"), "a")
        assert bench.clock.pending == 0


async def test_a_batch_is_bounded_by_texts_and_by_characters() -> None:
    async with Bench(max_rows=3, max_characters=10) as bench:
        call = bench.ask("1", "2", "3", "4", "yy", "x" * 9, "z" * 50)
        await turns()
        bench.model.open.set()
        await call
    sizes = [[len(text) for text in batch] for batch in bench.model.batches[1:]]
    assert sizes == [[1, 1, 1], [1, 2], [9], [50]]


async def test_a_text_on_its_way_is_computed_once_for_all_who_want_it() -> None:
    async with Bench() as bench:
        calls = [bench.ask("a", "b"), *(bench.ask("a") for _ in range(10)), bench.ask("busy")]
        await turns()
        bench.model.open.set()
        for call in calls[1:-1]:
            assert_right(await call, "a")
        assert_right(await calls[-1], "busy")
        assert bench.model.texts == ["busy", "a", "b"]
        assert bench.batcher.snapshot()["joined_count"] == 11


@pytest.mark.parametrize("running", [False, True])
async def test_a_caller_who_leaves_takes_nothing_from_the_others(running: bool) -> None:
    async with Bench() as bench:
        leader = bench.ask("a") if not running else bench.first
        await turns()
        follower = bench.ask("a" if not running else "busy")
        await turns()
        leader.cancel()
        await turns()
        bench.model.open.set()
        assert_right(await follower, "a" if not running else "busy")
        assert leader.cancelled()


async def test_texts_nobody_waits_for_any_more_never_reach_the_model() -> None:
    async with Bench() as bench:
        gone, stays = bench.ask("a", "b"), bench.ask("b", "c")
        await turns()
        gone.cancel()
        await turns()
        assert bench.batcher.snapshot()["queue_length"] == 2
        bench.model.open.set()
        assert_right(await stays, "b", "c")
        assert bench.model.texts == ["busy", "b", "c"]


async def test_a_failure_reaches_all_who_wait_and_is_not_remembered() -> None:
    async with Bench() as bench:
        calls = [bench.ask("a"), bench.ask("a", "b")]
        await turns()
        bench.model.error = RuntimeError("broken")
        bench.model.open.set()
        assert (await calls[0])[b"a"] is bench.model.error
        assert set((await calls[1]).values()) == {bench.model.error}
        bench.model.error = None
        assert_right(await bench.ask("a"), "a")


async def test_an_answer_of_the_wrong_length_is_nobodys_vector() -> None:
    async def send(texts: Sequence[str]) -> Sequence[Outcome]:
        return [Embedded(vector_of("x"), 1, truncated=False)] * (len(texts) + 1)

    batcher = Batcher(send, EmbeddingCache())
    batcher.start()
    outcome = (await batcher.embed(keys("a")))[b"a"]
    assert isinstance(outcome, InvalidReplyError)
    await batcher.stop()


async def test_a_full_queue_refuses_whole_calls_and_says_when_to_come_back() -> None:
    async with Bench(max_queue=2) as bench:
        waiting = bench.ask("a", "b", "c")
        await turns()
        with pytest.raises(QueueFullError) as refused:
            await bench.ask("d", "a")
        assert refused.value.retry_after == 1.0
        await bench.clock.advance(4.0)
        bench.model.open.set()
        await waiting
        bench.model.open.clear()
        running = bench.ask("e")
        await turns()
        waiting = bench.ask("f", "g")
        await turns()
        # Four seconds a text, then none: two a text, and two texts wait.
        with pytest.raises(QueueFullError) as refused:
            await bench.ask("h")
        assert refused.value.retry_after == 4.0
        bench.model.open.set()
        await asyncio.gather(running, waiting)
        assert bench.model.texts == ["busy", "a", "b", "c", "e", "f", "g"]


@pytest.mark.parametrize("bounds", [{"max_rows": 2}, {"max_characters": 8}])
async def test_a_long_call_goes_shortest_first_and_lets_short_calls_through(
    bounds: dict[str, int],
) -> None:
    async with Bench(**bounds) as bench:
        texts = [f"{number:02}" * (1 + number % 5) for number in range(40)]
        long = bench.ask(*texts)
        await turns()
        short = bench.ask("short")
        bench.model.open.set()
        assert_right(await short, "short")
        assert not long.done()
        assert_right(await long, *texts)
    lengths = [len(text) for text in bench.model.texts if text not in {"busy", "short"}]
    assert lengths == sorted(lengths)


async def test_a_text_computed_for_another_meanwhile_is_not_computed_again() -> None:
    async with Bench(max_rows=1) as bench:
        texts = [f"{number:02}" for number in range(8)]
        long = bench.ask(*texts)
        await turns()
        bench.cache.put(b"07", Embedded(vector_of("07"), 1, truncated=False))
        bench.model.open.set()
        assert_right(await long, *texts)
    assert "07" not in bench.model.texts


async def test_stopping_finishes_what_is_here_and_refuses_what_comes() -> None:
    async with Bench(max_rows=1) as bench:
        texts = [f"{number:02}" for number in range(20)]
        call = bench.ask(*texts)
        await turns()
        stopping = asyncio.create_task(bench.batcher.stop())
        await turns()
        with pytest.raises(ServiceStoppedError):
            await bench.ask("late")
        bench.model.open.set()
        await stopping
        assert_right(await call, *texts)
        bench.batcher.start()
        assert_right(await bench.ask("again"), "again")


async def test_a_cancelled_stop_leaves_nobody_waiting() -> None:
    async with Bench(max_rows=1) as bench:
        calls = [bench.ask(*(f"{number:02}" for number in range(9))), bench.ask("a")]
        await turns()
        stopping = asyncio.create_task(bench.batcher.stop())
        await turns()
        stopping.cancel()
        with pytest.raises(ServiceStoppedError):
            await calls[0]
        assert isinstance((await calls[1])[b"a"], ServiceStoppedError)
        assert isinstance((await bench.first)[b"busy"], ServiceStoppedError)


async def test_the_deadline_of_whoever_starts_it_does_not_bind_its_workers() -> None:
    seen: list[float | None] = []

    async def send(texts: Sequence[str]) -> Sequence[Outcome]:
        seen.append(remaining_time())
        return [Embedded(vector_of(text), 1, truncated=False) for text in texts]

    batcher = Batcher(send, EmbeddingCache())
    async with deadline(5.0):
        batcher.start()
        await batcher.embed(keys("a"))
    await batcher.stop()
    assert seen == [None]


async def test_a_caller_cancelled_after_its_answer_does_not_unqueue_the_next_one() -> None:
    answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def send(texts: Sequence[str]) -> Sequence[Outcome]:
        await asyncio.shield(answered)
        return [Embedded(vector_of(text), 1, truncated=False) for text in texts]

    batcher = Batcher(send, EmbeddingCache(0))
    batcher.start()
    first = asyncio.create_task(batcher.embed(keys("a")))
    await turns()
    answered.set_result(None)
    while batcher.snapshot()["computing"]:  # noqa: ASYNC110 - the very turn of the loop matters
        await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(5):
        assert_right(await batcher.embed(keys("a")), "a")
    assert first.cancelled()
    await batcher.stop()
