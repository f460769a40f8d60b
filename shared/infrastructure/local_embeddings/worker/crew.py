"""Worker processes of one backend: who is idle, and who comes after one that died."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from shared.infrastructure.local_embeddings.backends.protocol import BackendSpec
from shared.infrastructure.local_embeddings.errors import (
    InferenceError,
    ModelLoadError,
    WorkerCrashedError,
)
from shared.infrastructure.local_embeddings.worker.messages import Request, Start
from shared.infrastructure.local_embeddings.worker.process import Worker, WorkerDeath
from shared.infrastructure.resilience.clock import Clock

# Seconds between starts that fail: the first, the longest, the longest that somebody waits for.
_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0
_PATIENCE = 5.0

_TICK = 0.1  # seconds after which who waits looks at the clock


@dataclass(slots=True, eq=False)
class _Place:
    """A worker's place, and that of those who come after it.

    Attributes:
        worker: Who has it; None after starts that failed.
        failed_starts: How many of them in a row.
        failure: Why the last of them failed.
        start_at: When the next one may be tried, on the crew's clock.
    """

    worker: Worker | None = None
    failed_starts: int = 0
    failure: Exception | None = None
    start_at: float = 0.0

    @property
    def is_hopeless(self) -> bool:
        """Whether waiting for the next worker is no use."""
        return self.worker is None and _delay(self.failed_starts) > _PATIENCE


class Crew:
    """Workers that all load the same.

    One that died is replaced at once, and its successor loads while others work. Where starts fail
    again and again, the place stays empty for a while, longer each time, and its work waits for
    others; if there are none, for the next start, unless that is too far away.

    Args:
        start: What a worker loads.
        size: Workers.
        load_timeout: Seconds that loading may take; None is no limit.
        clock: Measures how long a place stays empty.
    """

    def __init__(self, start: Start, size: int, load_timeout: float | None, clock: Clock) -> None:
        self._start = start
        self._load_timeout = load_timeout
        self._clock = clock
        self._fingerprint: str | None = None
        self._places = [_Place() for _ in range(size)]
        self._idle = list(self._places)
        self._changed = threading.Condition(threading.RLock())
        self._closed = False
        self._crashes = 0
        self._hired = 0

    def open(self) -> BackendSpec:
        """Start all, and wait until each has loaded the model; a crew that cannot is closed.

        Raises:
            ServiceError: One could not.
        """
        name = self._start.config.model_name
        try:
            workers = [self._hire(place) for place in self._places]
            specs = [self._introduce(worker) for worker in workers]
        except (WorkerDeath, OSError) as exc:
            self.close(0)
            raise ModelLoadError(f"cannot load {name!r}: a worker ended: {exc}") from exc
        except BaseException:
            self.close(0)
            raise
        return specs[0]

    @contextlib.contextmanager
    def idle(self) -> Generator[Worker]:
        """Lend a worker to one user; wait for it if all are lent.

        Raises:
            WorkerDeath: The user saw the worker die.
            WorkerCrashedError: None is left, and none may be started yet.
        """
        place, worker = self._take()
        try:
            with self._watching(place, worker):
                yield worker
        finally:
            self._give_back(place)

    @contextlib.contextmanager
    def any(self) -> Generator[Worker]:
        """Lend a worker that may be lent to others, too: for requests that come aside.

        Raises:
            WorkerDeath: The user saw the worker die.
            WorkerCrashedError: None is left, and none may be started yet.
        """
        place, worker = self._pick()
        with self._watching(place, worker):
            yield worker

    def warm_up(self) -> None:
        """Warm every worker up, at the same time, and from now on all that come."""
        self._start = replace(self._start, warm_up=True)

        def warm_up(place: _Place) -> None:
            # One that cannot start, or dies, has a successor that warms up as it starts.
            if worker := self._ready(place):
                with contextlib.suppress(WorkerDeath), self._watching(place, worker):
                    worker.run(Request("warm_up"))

        with ThreadPoolExecutor(len(self._places), "warm-up") as threads:
            list(threads.map(warm_up, self._places))

    def tell(self, request: Request, timeout: float | None) -> None:
        """Ask every worker something aside; one that dies of it is replaced."""
        for place in self._places:
            worker = place.worker
            if worker and worker.is_known:
                with contextlib.suppress(WorkerDeath), self._watching(place, worker):
                    worker.run_aside(request, timeout)

    def close(self, grace: float) -> None:
        """End all workers within `grace` seconds, or by force; a second time does nothing."""
        with self._changed:
            self._closed = True
            workers = [place.worker for place in self._places if place.worker]
            for place in self._places:
                place.worker = None
            self._changed.notify_all()
        for worker in workers:
            worker.hang_up()
        deadline = time.monotonic() + grace
        for worker in workers:
            worker.end(max(0.0, deadline - time.monotonic()))

    def snapshot(self) -> dict[str, Any]:
        """Return facts as plain JSON types."""
        with self._changed:
            workers = [place.worker for place in self._places if place.worker]
            return {
                "size": len(self._places),
                "pids": [worker.pid for worker in workers],
                "crashes": self._crashes,
                "restarts": max(0, self._hired - len(self._places)),
            }

    def _take(self) -> tuple[_Place, Worker]:
        """Wait for a worker that has loaded the model and is lent to nobody; lend it."""
        while True:
            with self._changed:
                place = self._next(self._idle)
                self._idle.remove(place)
            try:
                worker = self._ready(place)
            except BaseException:
                self._give_back(place)
                raise
            if worker:
                return place, worker
            self._give_back(place)

    def _give_back(self, place: _Place) -> None:
        with self._changed:
            self._idle.append(place)
            self._changed.notify()

    def _pick(self) -> tuple[_Place, Worker]:
        """Wait for a worker that has loaded the model."""
        while True:
            with self._changed:
                place = self._next(self._places)
            if worker := self._ready(place):
                return place, worker

    def _next(self, places: Sequence[_Place]) -> _Place:
        """Wait for a place with a worker, or with leave to start one; the lock is held."""
        while not (place := self._best(places)):
            if all(place.is_hopeless for place in self._places):
                raise self._nobody()
            self._changed.wait(_TICK)
        return place

    def _best(self, places: Sequence[_Place]) -> _Place | None:
        """Return the place that can answer soonest, if one can."""
        if self._closed:
            raise InferenceError("the workers were closed")
        for place in places:
            if place.worker and place.worker.has_died:
                self._replace(place, place.worker)
        now = self._clock.now()
        usable = [place for place in places if place.worker or place.start_at <= now]
        return max(reversed(usable), key=_readiness, default=None)

    def _nobody(self) -> WorkerCrashedError:
        first = min(self._places, key=lambda place: place.start_at)
        error = WorkerCrashedError(f"no worker can be started: {first.failure}")
        error.retry_after = max(0.0, first.start_at - self._clock.now())
        error.__cause__ = first.failure
        return error

    def _ready(self, place: _Place) -> Worker | None:
        """Wait until the place's worker has loaded the model; replace one that cannot."""
        worker = place.worker
        try:
            worker = worker or self._hire(place)
            self._introduce(worker)
        except Exception as exc:
            self._replace(place, worker, exc)
            return None
        place.failed_starts = 0
        return worker

    def _hire(self, place: _Place) -> Worker:
        with self._changed:
            if self._closed:
                raise InferenceError("the workers were closed")
            if place.worker is None:
                place.worker = Worker(self._start)
                self._hired += 1
            return place.worker

    def _introduce(self, worker: Worker) -> BackendSpec:
        """Wait until a worker has loaded the model, and see that it is the same one."""
        spec = worker.spec(self._load_timeout)
        if self._fingerprint is None:
            self._fingerprint = spec.fingerprint
        if spec.fingerprint != self._fingerprint:
            raise ModelLoadError(
                "the files of the model have changed since it was loaded: a new worker would "
                f"give vectors of {spec.fingerprint!r} among those of {self._fingerprint!r}"
            )
        return spec

    @contextlib.contextmanager
    def _watching(self, place: _Place, worker: Worker) -> Generator[None]:
        try:
            yield
        except WorkerDeath:
            self._replace(place, worker)
            raise

    def _replace(
        self, place: _Place, worker: Worker | None, failure: Exception | None = None
    ) -> None:
        """Put a new worker in the place of one that failed to start, or died later on.

        Several users may see the same one die.
        """
        with self._changed:
            if self._closed or place.worker is not worker:
                return
            place.worker = None
            if failure is None or isinstance(failure, WorkerDeath):
                self._crashes += 1
            place.failure = failure
            place.failed_starts = place.failed_starts + 1 if failure else 0
            place.start_at = self._clock.now() + _delay(place.failed_starts)
            if place.start_at <= self._clock.now():
                with contextlib.suppress(OSError):  # tried again by who needs it
                    self._hire(place)
        if worker:
            worker.end(0)


def _readiness(place: _Place) -> tuple[bool, bool, bool]:
    worker = place.worker
    if worker is None:
        return False, False, False
    # A new one comes first: if it could not load, its successor is on its way the sooner.
    return worker.has_loaded, not worker.is_known, not worker.is_busy_aside


def _delay(failed_starts: int) -> float:
    """Return seconds until the next start: the first failure may have been chance."""
    if failed_starts < 2:
        return 0.0
    return min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** (failed_starts - 2))
