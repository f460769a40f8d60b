"""A loaded backend, the threads that run it, and the calls that hold it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from shared.infrastructure.local_embeddings.backends import BackendSpec, EmbeddingBackend
from shared.infrastructure.local_embeddings.errors import ModelLoadError
from shared.infrastructure.local_embeddings.limits import Limits
from shared.infrastructure.local_embeddings.memory.governor import Stage
from shared.infrastructure.local_embeddings.memory.heap import trim_heap
from shared.infrastructure.local_embeddings.memory.out_of_memory import is_out_of_memory
from shared.infrastructure.resilience.errors import ServiceError

_log = logging.getLogger(__name__)

T = TypeVar("T")

# On a CUDA device one pass is copied while another is computed.
_CUDA_WORKERS = 2


class Engine:
    """One life of a model: it opens once, runs, is retired, and closes after its last call.

    Opening and closing are work of its threads: whoever waits for them may be cancelled, and they
    still come to their end. Nothing here belongs to an event loop.

    Args:
        open_backend: Loads the model; runs on a thread of the engine.
        limit: Says how large its passes may be; runs there, too.
        name: Model name, for the threads' names and errors.
        workers: Passes that run at the same time, if the backend can; None is what suits the
            device: 1 on a CPU, which one pass keeps busy, else 2.

    Attributes:
        retired: Whether it takes no more calls.
        tokenizing: Held by the thread that tokenizes.
        workers: Passes that can run at the same time; 1 until it is open.
    """

    def __init__(
        self,
        open_backend: Callable[[], EmbeddingBackend],
        limit: Callable[[BackendSpec], Limits],
        name: str,
        workers: int | None = None,
    ) -> None:
        self._name = name
        self._wanted_workers = workers
        # Opens, tokenizes long calls ahead of the workers, and closes.
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix=f"prepare-{name}")
        self._runners: ThreadPoolExecutor | None = None
        self._backend: EmbeddingBackend | None = None
        self._leases = 0
        self._counting = threading.Lock()
        self.tokenizing = threading.Lock()
        self.retired = False
        self.workers = 1
        self._limits: Limits | None = None
        # Both hold an error as a value: nobody may be left to read it as an exception.
        self._closed: Future[Exception | None] = Future()
        self._opened = self._preparer.submit(self._open, open_backend, limit)

    @property
    def backend(self) -> EmbeddingBackend:
        """The loaded model; only between `opened` and `closed`, and only for the threads."""
        if self._backend is None:
            raise RuntimeError("the engine is not open")
        return self._backend

    @property
    def limits(self) -> Limits:
        """Bounds of the model's passes; from `opened` on."""
        if self._limits is None:
            raise RuntimeError("the engine is not open")
        return self._limits

    @property
    def is_open(self) -> bool:
        """Whether calls can run."""
        return self._runners is not None and not self.retired

    async def opened(self) -> BackendSpec:
        """Wait until the model is loaded; return its facts, even if it is closed again by now.

        Raises:
            ServiceError: It could not be loaded; every waiter is told.
        """
        outcome = await _watch(self._opened)
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    async def closed(self) -> Exception | None:
        """Wait until a retired engine has given everything back; return what went wrong, if so."""
        return await _watch(self._closed)

    @contextlib.contextmanager
    def lease(self) -> Generator[None]:
        """Keep the model loaded for the length of one call."""
        self._take()
        try:
            yield
        finally:
            self._give_back()

    def retire(self) -> None:
        """Take no more calls; close when the last one has ended."""
        with self._counting:
            if self.retired:
                return
            self.retired = True
            close = not self._leases
        if close:
            self._begin_to_close()

    def trim(self) -> None:
        """Give back memory that the backend keeps only for speed."""
        with self._counting:
            if not self.is_open:
                return
            self._leases += 1
        try:
            self.backend.trim()
            trim_heap()
        finally:
            self._give_back()

    def prepare(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run `work` beside the passes; cancelled before its turn, it never starts."""
        return self._submit(self._preparer, work)

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run `work` as a pass; cancelled before its turn, it never starts."""
        if self._runners is None:
            raise RuntimeError("the engine is not open")
        return self._submit(self._runners, work)

    def _submit(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> asyncio.Future[T]:
        # A caller that was cancelled no longer waits for its pass, yet the model must outlive it.
        self._take()
        try:
            future = threads.submit(work)
        except BaseException:  # no thread can be started
            self._give_back()
            raise
        future.add_done_callback(lambda _: self._give_back())
        return asyncio.wrap_future(future)

    def _take(self) -> None:
        with self._counting:
            self._leases += 1

    def _give_back(self) -> None:
        with self._counting:
            self._leases -= 1
            close = self.retired and not self._leases
        if close:
            self._begin_to_close()

    def _begin_to_close(self) -> None:
        self._preparer.submit(self._close)
        self._preparer.shutdown(wait=False)

    def _open(
        self,
        open_backend: Callable[[], EmbeddingBackend],
        limit: Callable[[BackendSpec], Limits],
    ) -> BackendSpec | ServiceError:
        try:
            self._backend = backend = open_backend()
            spec = backend.spec
            self._limits = limits = limit(spec)
            _warm_up(backend)
        except ServiceError as exc:
            return exc
        except BaseException as exc:  # libraries in Rust panic with errors that are no Exception
            error = ModelLoadError(f"cannot load {self._name!r}: {exc}", service=self._name)
            error.__cause__ = exc
            return error
        # Held weakly, so that both end with this engine.
        limits.governor.register(Stage.TRIM, self.trim, device=spec.device)
        limits.governor.register(Stage.BUDGET, limits.budget.relieve, device=spec.device)
        suited = _CUDA_WORKERS if spec.device.startswith("cuda") else 1
        self.workers = (self._wanted_workers or suited) if spec.concurrent else 1
        self._runners = ThreadPoolExecutor(self.workers, thread_name_prefix=f"embed-{self._name}")
        return spec

    def _close(self) -> None:
        error = None
        try:
            if self._runners is not None:
                self._runners.shutdown(wait=True)
            if self._backend is not None:
                self._backend.close()
        except Exception as exc:
            error = exc
        self._runners = self._backend = None
        try:
            _give_memory_back()
        except Exception as exc:
            error = error or exc
        finally:
            self._closed.set_result(error)


async def _watch(future: Future[T]) -> T:
    """Wait for a thread's future; a cancelled waiter leaves it running."""
    if future.done():
        return future.result()  # without a turn of the event loop
    return await asyncio.shield(asyncio.wrap_future(future))


def _warm_up(backend: EmbeddingBackend) -> None:
    try:
        backend.warm_up()
    except Exception as exc:
        # Smaller passes may do.
        if not is_out_of_memory(exc):
            raise
        _log.warning("there is not memory enough to warm the model up", exc_info=True)
        backend.trim()


def _give_memory_back() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim_heap()
