"""A loaded backend, the one thread that runs it, and the calls that hold it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from shared.infrastructure.local_embeddings.backends import BackendSpec, EmbeddingBackend
from shared.infrastructure.local_embeddings.errors import ModelLoadError
from shared.infrastructure.resilience.errors import ServiceError

T = TypeVar("T")


class Engine:
    """One life of a model: it opens once, runs, is retired, and closes after its last call.

    Opening and closing are work of the thread: whoever waits for them may be cancelled, and they
    still come to their end. Nothing here belongs to an event loop. `spec` is known from the moment
    it is open, and for ever after.

    Args:
        open_backend: Loads the model; runs on the thread.
        name: Model name, for the thread's name and errors.
    """

    def __init__(self, open_backend: Callable[[], EmbeddingBackend], name: str) -> None:
        self._name = name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"embed-{name}")
        self._backend: EmbeddingBackend | None = None
        self._leases = 0
        self.retired = False
        self.spec: BackendSpec | None = None
        # Both hold an error as a value: nobody may be left to read it as an exception.
        self._closed: Future[Exception | None] = Future()
        self._opened = self._thread.submit(self._open, open_backend)

    @property
    def backend(self) -> EmbeddingBackend:
        """The loaded model; only between `opened` and `closed`, and only for the thread."""
        if self._backend is None:
            raise RuntimeError("the engine is not open")
        return self._backend

    @property
    def is_open(self) -> bool:
        """Whether calls can run."""
        return self._backend is not None and not self.retired

    async def opened(self) -> None:
        """Wait until the model is loaded.

        Raises:
            ServiceError: It could not be loaded; every waiter is told.
        """
        if error := await _watch(self._opened):
            raise error

    async def closed(self) -> Exception | None:
        """Wait until a retired engine has given everything back; return what went wrong, if so."""
        return await _watch(self._closed)

    @contextlib.contextmanager
    def lease(self) -> Generator[None]:
        """Keep the model loaded for the length of one call."""
        self._leases += 1
        try:
            yield
        finally:
            self._leases -= 1
            self._close_when_idle()

    def retire(self) -> None:
        """Take no more calls; close when the last one has ended."""
        if not self.retired:
            self.retired = True
            self._close_when_idle()

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` on the thread; cancelled before its turn, it never starts."""
        return await asyncio.wrap_future(self._thread.submit(work))

    def _close_when_idle(self) -> None:
        if self.retired and not self._leases:
            self._thread.submit(self._close)
            self._thread.shutdown(wait=False)

    def _open(self, open_backend: Callable[[], EmbeddingBackend]) -> ServiceError | None:
        try:
            self._backend = open_backend()
            self.spec = self._backend.spec
        except ServiceError as exc:
            return exc
        except Exception as exc:
            error = ModelLoadError(f"cannot load {self._name!r}: {exc}", service=self._name)
            error.__cause__ = exc
            return error
        return None

    def _close(self) -> None:
        error = None
        try:
            if self._backend is not None:
                self._backend.close()
        except Exception as exc:
            error = exc
        self._backend = None
        _give_memory_back()
        self._closed.set_result(error)


async def _watch(future: Future[T]) -> T:
    """Wait for a thread's future; a cancelled waiter leaves it running."""
    return await asyncio.shield(asyncio.wrap_future(future))


def _give_memory_back() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    # glibc keeps what was freed on another thread than the main one unless it is asked.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
