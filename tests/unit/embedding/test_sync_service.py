import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from services.embedding import Embedded, Prepared, sync
from services.embedding.errors import ServiceStoppedError
from services.embedding.options import EmbedOptions
from services.embedding.settings import EmbeddingSettings
from services.embedding.sync import SyncEmbeddingService
from shared.infrastructure.local_embeddings import InvalidTextError
from shared.infrastructure.resilience import ConfigurationError, DeadlineExceededError
from shared.infrastructure.resilience.blocking import blocking_deadline
from tests.unit.embedding.embedding_fakes import DIMENSION, FakeBackend, unit, vector_of

ROOT = Path(__file__).parents[3]


class HookedBackend(FakeBackend):
    """One that calls the test at the beginning of every batch, on the loop's thread."""

    def __init__(self) -> None:
        super().__init__()
        self.on_batch: Callable[[], object] = lambda: None
        self.on_stop: Callable[[], object] = lambda: None

    async def stop(self) -> None:
        self.on_stop()
        await super().stop()
        await asyncio.sleep(0.05)

    async def embed(self, batch: Sequence[Prepared]) -> Sequence[Embedded | Exception]:
        self.on_batch()
        return await super().embed(batch)

    def open_soon(self) -> None:
        asyncio.get_running_loop().call_later(0.05, self.open.set)


@pytest.fixture
def backend() -> HookedBackend:
    return HookedBackend()


@pytest.fixture
def service(backend: FakeBackend) -> Iterator[SyncEmbeddingService]:
    with SyncEmbeddingService(backend=backend) as service:
        yield service


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Take SIGINT as a terminal's process does: one in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_every_call_gives_what_the_asynchronous_one_gives(service: SyncEmbeddingService) -> None:
    assert service.embed("a").embedding == pytest.approx(unit(vector_of("a")).tolist())
    assert [item.token_count for item in service.embed(["a b", "c"])] == [4, 3]
    batch = service.embed_batch(["a", "b"], EmbedOptions(normalize=False))
    np.testing.assert_array_equal(batch.vectors, [vector_of("a"), vector_of("b")])
    np.testing.assert_allclose(service.embed_query("a")[0], unit(vector_of("q: a")), rtol=1e-6)
    assert service.embed_document(["a", "b"], dimensions=3).shape == (2, 3)
    assert service.compute_similarity("a", "A") == pytest.approx(1.0)
    assert service.top_k("a", ["b", "c"], 1)[0][0] in {0, 1}
    assert service.count_tokens(["a", "a b"]) == [3, 4]
    service.warmup()
    assert service.facts.dimension == DIMENSION
    assert service.get_metrics()["text_count"] > 0
    assert service.health_check()["status"] == "healthy"
    assert service.model_name == service.settings.model_name
    assert service.is_ready


def test_calls_of_several_threads_share_batches(
    service: SyncEmbeddingService, backend: FakeBackend
) -> None:
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda number: service.embed(f"t{number}"), range(200)))
    for number, result in enumerate(results):
        assert result.embedding == pytest.approx(unit(vector_of(f"t{number}")).tolist())
    assert len(backend.texts) == 200


def test_the_first_call_starts_it_and_stopping_leaves_no_thread(backend: FakeBackend) -> None:
    service = SyncEmbeddingService(backend=backend)
    assert "embedding-service" not in threads()
    service.embed("a")
    assert "embedding-service" in threads()
    service.stop()
    service.stop()
    assert "embedding-service" not in threads()
    assert (backend.starts, backend.stops) == (1, 1)
    with pytest.raises(ServiceStoppedError):
        service.embed("a")
    assert not service.is_ready
    with service:
        assert service.embed("a").token_count == 3


def test_a_start_that_fails_leaves_no_thread_and_may_be_tried_again(backend: FakeBackend) -> None:
    backend.start_error = ConfigurationError("no such model")
    service = SyncEmbeddingService(backend=backend)
    with pytest.raises(ConfigurationError, match="no such model"):
        service.start()
    assert "embedding-service" not in threads()
    backend.start_error = None
    with service:
        assert service.is_ready


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_wait_and_the_call(
    service: SyncEmbeddingService, backend: HookedBackend
) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    def interrupt() -> None:
        loops.append(asyncio.get_running_loop())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    backend.open.clear()
    backend.on_batch = interrupt
    with pytest.raises(KeyboardInterrupt):
        service.embed("a")
    backend.on_batch = lambda: None
    loops[0].call_soon_threadsafe(backend.open.set)
    assert service.embed("b").token_count == 3
    assert service.get_metrics()["cancelled_count"] == 1


def test_the_deadline_of_the_caller_holds(
    service: SyncEmbeddingService, backend: HookedBackend
) -> None:
    backend.open.clear()
    backend.on_batch = lambda: asyncio.get_running_loop().call_later(0.5, backend.open.set)
    with blocking_deadline(0.05), pytest.raises(DeadlineExceededError):
        service.embed("a")


async def test_it_works_under_a_running_event_loop(service: SyncEmbeddingService) -> None:
    assert service.embed("a").token_count == 3


def test_a_call_in_flight_is_finished_by_a_stop(
    service: SyncEmbeddingService, backend: HookedBackend
) -> None:
    backend.open.clear()
    entered = threading.Event()

    def begin() -> None:
        entered.set()
        backend.open_soon()

    backend.on_batch = begin
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(service.embed, "a")
        assert entered.wait(10)
        service.stop()
        assert call.result().token_count == 3


def test_a_callback_cannot_wait_for_its_own_service(service: SyncEmbeddingService) -> None:
    errors: list[Exception] = []

    def ask(_: object) -> None:
        try:
            service.embed("b")
        except ConfigurationError as exc:
            errors.append(exc)

    assert sum(len(chunk) for chunk in service.embed_iter(["a"], progress=ask)) == 1
    assert "another thread" in str(errors[0])


class TestEmbedIter:
    def test_the_texts_are_read_in_the_callers_thread_and_no_further_than_needed(
        self, service: SyncEmbeddingService
    ) -> None:
        read = 0

        def texts() -> Iterator[str]:
            nonlocal read
            for number in range(20_000):
                assert threading.current_thread() is threading.main_thread()
                read += 1
                yield f"t{number}"

        chunks = service.embed_iter(texts(), window=100)
        first = next(chunks)
        assert (first.start, first.vectors.shape) == (0, (100, DIMENSION))
        assert read < 1000
        chunks.close()
        assert read < 1000
        assert service.embed("after").token_count == 3

    def test_a_corpus_comes_in_order_and_may_be_gone_on_with(
        self, service: SyncEmbeddingService
    ) -> None:
        corpus = [f"t{number}" for number in range(1000)]
        done: list[int] = []
        chunks = list(
            service.embed_iter(
                corpus, window=64, start=10, progress=lambda state: done.append(state.texts)
            )
        )
        assert [chunk.start for chunk in chunks] == list(range(10, 1000, 64))
        vectors = np.concatenate([chunk.vectors for chunk in chunks])
        expected = [unit(vector_of(text)) for text in corpus[10:]]
        np.testing.assert_allclose(vectors, expected, rtol=1e-5)
        assert done[-1] == 1000

    def test_the_corpus_may_ask_the_service_itself(self, service: SyncEmbeddingService) -> None:
        texts = (f"t{service.embed('x').token_count}{number}" for number in range(5))
        assert sum(len(chunk) for chunk in service.embed_iter(texts)) == 5

    def test_what_the_corpus_raises_is_raised(self, service: SyncEmbeddingService) -> None:
        def broken() -> Iterator[str]:
            yield "a"
            raise LookupError("no more")

        with pytest.raises(LookupError, match="no more"):
            list(service.embed_iter(broken()))
        assert service.embed("after").token_count == 3

    def test_one_text_is_no_corpus(self, service: SyncEmbeddingService) -> None:
        with pytest.raises(InvalidTextError):
            list(service.embed_iter("text"))

    def test_an_iterator_that_outlives_its_service_is_told_so(self, backend: FakeBackend) -> None:
        with SyncEmbeddingService(backend=backend) as service:
            chunks = service.embed_iter((f"t{number}" for number in range(500)), window=10)
            next(chunks)
        with pytest.raises(ServiceStoppedError):
            next(chunks)

    def test_one_that_another_thread_stops_is_told_so(self, backend: HookedBackend) -> None:
        begun, stopped = threading.Event(), threading.Event()

        def consume() -> None:
            for _ in service.embed_iter(map(str, range(1000)), window=10):
                begun.set()
                assert stopped.wait(10)

        with ThreadPoolExecutor(1) as pool, SyncEmbeddingService(backend=backend) as service:
            call = pool.submit(consume)
            assert begun.wait(10)
            closing = threading.Thread(target=service.stop)
            backend.on_stop = stopped.set  # it goes on before the loop has ended
            closing.start()
            closing.join(10)
            with pytest.raises(ServiceStoppedError):
                call.result(10)

    def test_texts_that_do_not_come_hold_up_no_stop(self, backend: FakeBackend) -> None:
        waits, come = threading.Event(), threading.Event()

        def texts() -> Iterator[str]:
            yield "a"
            waits.set()
            come.wait()

        with ThreadPoolExecutor(1) as pool:
            service = SyncEmbeddingService(backend=backend)
            call = pool.submit(lambda: list(service.embed_iter(texts(), window=1)))
            try:
                assert waits.wait(10)
                stop = threading.Thread(target=service.stop, daemon=True)
                stop.start()
                stop.join(10)
                assert not stop.is_alive()
            finally:
                come.set()
            with pytest.raises(ServiceStoppedError):
                call.result(10)
        assert backend.stops == 1

    @pytest.mark.parametrize("is_late", [False, True])
    def test_a_corpus_that_cannot_be_ended_holds_up_no_stop(
        self, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, is_late: bool
    ) -> None:
        async def end(self: object) -> None:
            if is_late:
                await asyncio.sleep(60)
            raise LookupError

        monkeypatch.setattr(sync._Steps, "end", end)
        monkeypatch.setattr(sync, "_LAST_PATIENCE", 0.05)
        with SyncEmbeddingService(backend=backend) as service:
            chunks = service.embed_iter(map(str, range(1000)), window=10)
            next(chunks)
        assert backend.stops == 1
        monkeypatch.undo()
        with pytest.raises(ServiceStoppedError):
            next(chunks)


def test_a_loop_over_a_corpus_may_be_left_by_an_error(
    backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    def leave_early() -> None:
        with SyncEmbeddingService(backend=backend) as service:
            for _ in service.embed_iter((f"t{number}" for number in range(500)), window=10):
                raise LookupError

    with pytest.raises(LookupError):
        leave_early()
    assert [record.getMessage() for record in caplog.records] == []
    assert backend.stops == 1


def test_one_that_is_forgotten_stops_itself(backend: FakeBackend) -> None:
    SyncEmbeddingService(backend=backend).embed("a")
    gc.collect()
    assert "embedding-service" not in threads()
    assert backend.stops == 1


PREAMBLE = """
import os, sys
from services.embedding import EmbeddingSettings
from services.embedding.sync import SyncEmbeddingService
from services.embedding.errors import ServiceForkedError
from tests.unit.embedding.embedding_fakes import FakeBackend
service = SyncEmbeddingService(EmbeddingSettings(), backend=FakeBackend())
service.embed("a")
"""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('end')", "end"),
        ("service.stop(); print('end')", "end"),
        ("global_chunks = service.embed_iter(map(str, range(999))); next(global_chunks)", ""),
        (
            """
child = os.fork()
if not child:
    try:
        service.embed("a")
    except ServiceForkedError as exc:
        print(exc.code, flush=True)
    service.stop()
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), service.embed("a").token_count)
""",
            "service_forked\n7 3",
        ),
    ],
)
def test_a_process_ends_in_order_whatever_it_leaves_behind(script: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, said, "")


def test_settings_are_those_that_were_given(backend: FakeBackend) -> None:
    settings = EmbeddingSettings(model_name="some/model", cache_size=0)
    with SyncEmbeddingService(settings, backend=backend) as service:
        assert (service.settings, service.model_name) == (settings, "some/model")
