"""`SyncEmbeddingService`: the embedding service for code without an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from services.embedding.backends.protocol import Backend, BackendFacts
from services.embedding.errors import ServiceStoppedError
from services.embedding.loop_thread import LoopThread, result_of, too_late
from services.embedding.options import DEFAULT_OPTIONS, EmbedOptions, Item
from services.embedding.results import Embeddings
from services.embedding.service import ProductionEmbeddingService
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.local_embeddings import EmbeddedChunk, Progress
from shared.infrastructure.local_embeddings.corpus import DEFAULT_WINDOW
from shared.infrastructure.resilience import ConfigurationError, DeadlineExceededError
from shared.infrastructure.resilience.blocking import THREADS
from shared.infrastructure.resilience.timeout import remaining_time
from shared.models.embedding import EmbeddingResult

T = TypeVar("T")

# Seconds that stopping may take when the interpreter ends: threads it needs may be gone; and that
# ending corpora may take at any time.
_LAST_PATIENCE = 10.0
_TEXTS_PER_TURN = 256


class SyncEmbeddingService:
    """Embed texts as `ProductionEmbeddingService` does, from ordinary functions.

    Use it as `with SyncEmbeddingService() as service: service.embed("Hello")`. Without `start` the
    first call starts it. The engine is the same, on an event loop in a thread of its own, and calls
    from several threads share its batches. What is raised is the same, too; the deadline of the
    caller holds (`blocking_deadline`), and Ctrl-C cancels the call that waits.

    In a coroutine use `ProductionEmbeddingService`: a call of this one works there, but holds up
    the event loop until it returns. Make one in each process: after a fork it cannot be used. One
    that is never stopped is stopped when the interpreter ends, but may then no longer write its
    cache.

    Args:
        settings: As for `ProductionEmbeddingService`.
        backend: As for `ProductionEmbeddingService`.

    Raises:
        ServiceForkedError: It was started before this process was forked.
        ServiceStoppedError: It was stopped; `start` it again.
    """

    def __init__(
        self, settings: EmbeddingSettings | None = None, *, backend: Backend | None = None
    ) -> None:
        self.settings = settings or EmbeddingSettings()
        self._backend = backend
        self._turns = threading.Lock()
        self._engine: _Engine | None = None
        self._at_exit: weakref.finalize[Any, Any] | None = None
        self._stopped = False

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self.settings.model_name

    @property
    def facts(self) -> BackendFacts:
        """What is known of the model; starts the service if need be."""
        return self._call(_facts)

    @property
    def is_ready(self) -> bool:
        """Whether it has started, is not stopping, and its model is well."""
        engine = self._engine
        return engine is not None and not engine.thread.is_forked and engine.service.is_ready

    def start(self) -> None:
        """Load the model and prove that it works; a second call changes nothing."""
        self._stopped = False
        engine = self._opened()
        try:
            engine.thread.run(engine.service.start)
        except BaseException:
            if not engine.service.is_started:
                self._close()
            raise

    def stop(self) -> None:
        """Refuse new calls, finish those that are here, and let go of the model.

        A second call changes nothing, and neither does one in a fork.
        """
        self._stopped = True
        self._close()

    @overload
    def embed(self, texts: str, *, dimensions: int | None = None) -> EmbeddingResult: ...
    @overload
    def embed(
        self, texts: list[str] | tuple[str, ...], *, dimensions: int | None = None
    ) -> list[EmbeddingResult]: ...
    def embed(
        self, texts: str | list[str] | tuple[str, ...], *, dimensions: int | None = None
    ) -> EmbeddingResult | list[EmbeddingResult]:
        """Embed one text, or many in order, as `ProductionEmbeddingService.embed` does."""
        if isinstance(texts, str):
            return self._call(lambda service: service.embed(texts, dimensions=dimensions))
        return self._call(lambda service: service.embed(texts, dimensions=dimensions))

    def embed_batch(
        self, items: Sequence[Item] | str, options: EmbedOptions = DEFAULT_OPTIONS
    ) -> Embeddings:
        """Embed many texts, or token ids, into one array, in their order."""
        return self._call(lambda service: service.embed_batch(items, options))

    def embed_query(
        self, texts: Sequence[str] | str, *, dimensions: int | None = None
    ) -> NDArray[np.float32]:
        """Return vectors (n, dimensions) of texts that search, under the model's prompt for it."""
        return self._call(lambda service: service.embed_query(texts, dimensions=dimensions))

    def embed_document(
        self, texts: Sequence[str] | str, *, dimensions: int | None = None
    ) -> NDArray[np.float32]:
        """Return vectors (n, dimensions) of texts to be found, under the prompt for them."""
        return self._call(lambda service: service.embed_document(texts, dimensions=dimensions))

    def embed_iter(
        self,
        texts: Iterable[str],
        options: EmbedOptions = DEFAULT_OPTIONS,
        *,
        window: int = DEFAULT_WINDOW,
        start: int = 0,
        progress: Callable[[Progress], object] | None = None,
    ) -> Generator[EmbeddedChunk]:
        """Yield what comes of a corpus of any size, as `ProductionEmbeddingService.embed_iter`.

        The texts are read in the thread that asks for the chunks, no further than is needed, so
        that they may come from a file, a database or this service. `progress` is called on the
        thread of the service, and must not wait for it.
        """
        engine = self._opened()
        corpus = _Corpus(texts, engine.thread)
        chunks = engine.service.embed_iter(
            # One text is no corpus, which the service says.
            texts if isinstance(texts, str) else corpus.read(),
            options,
            window=window,
            start=start,
            progress=progress,
        )
        steps = _Steps(chunks)
        engine.unfinished.add(steps)
        try:
            while (chunk := corpus.serve(engine.thread.submit(steps.following))) is not None:
                yield chunk
        finally:
            engine.unfinished.discard(steps)
            with contextlib.suppress(ServiceStoppedError, ConfigurationError):
                engine.thread.run(steps.end)

    def compute_similarity(self, a: str, b: str) -> float:
        """Return the cosine of the angle between two texts, from -1 to 1."""
        return self._call(lambda service: service.compute_similarity(a, b))

    def top_k(
        self, query: str, documents: Sequence[str] | NDArray[np.float32], k: int
    ) -> list[tuple[int, float]]:
        """Return the k documents nearest to a query, best first: their positions and cosines."""
        return self._call(lambda service: service.top_k(query, documents, k))

    def count_tokens(
        self, items: Sequence[Item] | str, options: EmbedOptions = DEFAULT_OPTIONS
    ) -> list[int]:
        """Return the tokens the model would read of each item; a remote model's are estimated."""
        return self._call(lambda service: service.count_tokens(items, options))

    def warmup(self) -> None:
        """Start, and embed a text so that the first callers find everything warm."""
        self._call(lambda service: service.warmup())

    def get_metrics(self) -> dict[str, Any]:
        """Return a snapshot of plain JSON types; times are seconds, rates 0.0 to 1.0."""
        return self._call(_metrics)

    def health_check(self) -> dict[str, Any]:
        """Ask the model, if it is loaded, and return `status`, `metrics` and the parts of both."""
        return self._call(lambda service: service.health_check())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _call(self, make: Callable[[ProductionEmbeddingService], Coroutine[Any, Any, T]]) -> T:
        engine = self._opened()
        return engine.thread.run(lambda: make(engine.service), remaining_time())

    def _opened(self) -> _Engine:
        """Return the engine, with its thread; the model is loaded by whoever needs it first."""
        engine = self._engine
        if engine is not None:
            return engine
        with self._turns:
            if self._stopped:
                raise ServiceStoppedError("the embedding service has been stopped")
            if self._engine is None:
                engine = self._engine = _Engine(self.settings, self._backend)
                self._at_exit = weakref.finalize(self, engine.close_at_exit)
            return self._engine

    def _close(self) -> None:
        engine = self._engine
        if engine is not None:
            if engine.thread.is_forked:
                return  # the lock may be one that a thread of the parent holds
            engine.thread.check_outside()
        with self._turns:
            engine, self._engine = self._engine, None
            if engine is not None and self._at_exit is not None:
                self._at_exit.detach()
                engine.close()


class _Engine:
    """The asynchronous service, on a thread of its own.

    Attributes:
        unfinished: Corpora that are being embedded.
    """

    def __init__(self, settings: EmbeddingSettings, backend: Backend | None) -> None:
        self.service = ProductionEmbeddingService(settings, backend=backend)
        self.thread = LoopThread("embedding-service")
        self.unfinished: set[_Steps] = set()

    def close(self, patience: float | None = None) -> None:
        """Stop the service within `patience` seconds, and end its thread in any case."""
        try:
            # A corpus that cannot be ended keeps nobody from writing the cache down.
            with contextlib.suppress(DeadlineExceededError):
                self.thread.run(self._end_corpora, _LAST_PATIENCE if patience is None else patience)
            self.thread.run(self.service.stop, patience)
        finally:
            self.thread.close()

    async def _end_corpora(self) -> None:
        ends = [steps.end() for steps in tuple(self.unfinished)]
        await asyncio.gather(*ends, return_exceptions=True)

    def close_at_exit(self) -> None:
        """Close what nobody has closed; threads it needs may be gone."""
        if self.thread.is_current:  # where the garbage happened to be collected
            threading.Thread(target=self.close_at_exit, daemon=True).start()
        elif not self.thread.is_forked:
            with contextlib.suppress(Exception):
                self.close(_LAST_PATIENCE)


class _Steps:
    """The way through a corpus, on the loop, a chunk at a time, until it is ended.

    Args:
        chunks: What is stepped through.
    """

    def __init__(self, chunks: AsyncGenerator[EmbeddedChunk]) -> None:
        self._chunks = chunks
        self._turn = asyncio.Lock()
        self._step: asyncio.Task[Any] | None = None
        self._ended = False

    async def following(self) -> EmbeddedChunk | None:
        """Return the next chunk; None is their end.

        Raises:
            ServiceStoppedError: It was ended.
        """
        async with self._turn:
            if self._ended:
                raise ServiceStoppedError("the embedding service has been stopped")
            self._step = asyncio.current_task()
            try:
                return await anext(self._chunks, None)
            finally:
                self._step = None

    async def end(self) -> None:
        """Cancel the step under way, which may wait for a text that never comes, and end it all."""
        self._ended = True
        if self._step is not None and not self._step.cancelling():
            self._step.cancel()
        async with self._turn:
            await self._chunks.aclose()


class _Corpus:
    """Texts that are read in the thread of a caller, while it waits, for a loop that wants them.

    Args:
        texts: What is read.
        thread: The loop's.
    """

    def __init__(self, texts: Iterable[str], thread: LoopThread) -> None:
        self._texts = iter(texts)
        self._thread = thread
        self._wanted: asyncio.Future[list[str]] | None = None
        self._news = THREADS.event()

    async def read(self) -> AsyncGenerator[str]:
        """Yield the texts, on the loop."""
        while True:
            self._wanted = asyncio.get_running_loop().create_future()
            self._news.set()
            part = await self._wanted
            for text in part:
                yield text
            if len(part) < _TEXTS_PER_TURN:
                return

    def serve(self, future: Future[T]) -> T:
        """Read what is wanted until a future is done, and return what it came to."""
        future.add_done_callback(lambda _: self._news.set())
        try:
            while True:
                if not self._news.wait(remaining_time()):
                    raise too_late()
                self._news.clear()
                if self._wanted is not None:
                    wanted, self._wanted = self._wanted, None
                    self._thread.call_soon(self._answer(), wanted)
                if future.done():
                    return result_of(future)
        except BaseException:
            future.cancel()
            raise

    def _answer(self) -> Callable[[asyncio.Future[list[str]]], None]:
        """Read on; return what tells the loop of it."""
        try:
            part = list(itertools.islice(self._texts, _TEXTS_PER_TURN))
        except Exception as exc:
            error = exc
            return lambda wanted: None if wanted.done() else wanted.set_exception(error)
        return lambda wanted: None if wanted.done() else wanted.set_result(part)


async def _facts(service: ProductionEmbeddingService) -> BackendFacts:
    await service.start()
    return service.facts


async def _metrics(service: ProductionEmbeddingService) -> dict[str, Any]:
    return service.get_metrics()
