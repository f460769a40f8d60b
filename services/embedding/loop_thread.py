"""An event loop on a thread of its own, for threads that want something done on it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, TypeVar

from services.embedding.errors import ServiceForkedError, ServiceStoppedError
from shared.infrastructure.resilience import ConfigurationError, DeadlineExceededError
from shared.infrastructure.resilience.blocking import THREADS

T = TypeVar("T")

Work = Callable[[], Coroutine[Any, Any, T]]


class LoopThread:
    """Runs coroutines on one event loop, for any number of threads; started when it is made.

    A thread that waits is woken by Ctrl-C, and what it waits for is cancelled. The context of the
    caller, its deadline for one, holds on the loop, too.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._lock = threading.RLock()  # a finalizer may come in between
        self._closing = asyncio.Event()
        self._closed = False
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        # A daemon: the interpreter must not wait for it before it runs the exit handler that ends
        # it.
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether this is the thread of the loop."""
        return threading.current_thread() is self._thread

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of the one whose thread it is."""
        return os.getpid() != self._process

    def run(self, work: Work[T], timeout: float | None = None) -> T:
        """Return what a coroutine returns.

        Args:
            work: Makes the coroutine.
            timeout: Seconds after which it is cancelled; None is never, whatever the deadline.

        Raises:
            ServiceStoppedError: The loop has ended, or ended meanwhile.
            ServiceForkedError: This process is a fork of the one whose loop it is.
            ConfigurationError: This is the loop's own thread, which cannot wait for itself.
            DeadlineExceededError: The coroutine took longer than `timeout`.
        """
        errand = _Errand(work)
        over = THREADS.event()
        try:
            future = self.submit(errand.run)
            future.add_done_callback(lambda _: over.set())
            if not over.wait(timeout):
                raise too_late()
        except BaseException:
            self.call_soon(errand.give_up)
            raise
        return result_of(future)

    def submit(self, work: Work[T]) -> Future[T]:
        """Begin a coroutine; it raises as `run` does, but for `DeadlineExceededError`."""
        if self.is_forked:
            raise ServiceForkedError(
                f"the service belongs to process {self._process}, of which this is a fork: make "
                "one of its own in each process"
            )
        self.check_outside()
        with self._lock:
            if self._closed:
                raise ServiceStoppedError("the embedding service has been stopped")
            return asyncio.run_coroutine_threadsafe(work(), self._loop)

    def check_outside(self) -> None:
        """Raise `ConfigurationError` on the loop's own thread, which cannot wait for itself."""
        if self.is_current:
            raise ConfigurationError(
                "a callback of the service waits for the service: hand its work to another thread"
            )

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Call something on the loop, unless it has ended."""
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(callback, *args)

    def close(self) -> None:
        """End the loop and its thread; what still runs there is cancelled. Again does nothing."""
        if self.is_forked:
            return
        self.call_soon(self._closing.set)
        if not self.is_current:
            self._thread.join()

    def _live(self) -> None:
        # Its end is that of `asyncio.run`: no task, generator or thread is left.
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_closed())

    async def _until_closed(self) -> None:
        await self._closing.wait()
        with self._lock:
            self._closed = True
        # What was submitted last becomes a task, so that it is cancelled with the others.
        await asyncio.sleep(0)


class _Errand(Generic[T]):
    """Something to do on the loop, that may be given up before anybody holds its future."""

    def __init__(self, work: Work[T]) -> None:
        self._work = work
        self._task: asyncio.Task[Any] | None = None
        self._given_up = False

    async def run(self) -> T:
        self._task = asyncio.current_task()
        if self._given_up:
            raise asyncio.CancelledError
        return await self._work()

    def give_up(self) -> None:
        self._given_up = True
        if self._task is not None:
            self._task.cancel()


def too_late() -> DeadlineExceededError:
    """Return the error of a call whose time is up."""
    return DeadlineExceededError("the deadline passed before the embedding service was done")


def result_of(future: Future[T]) -> T:
    """Return what a future that is done came to.

    Raises:
        ServiceStoppedError: The loop ended meanwhile.
    """
    try:
        return future.result()
    except CancelledError:
        raise ServiceStoppedError("the embedding service was stopped meanwhile") from None
