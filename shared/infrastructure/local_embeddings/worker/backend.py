"""A backend in processes of its own, behind the protocol of one that is not."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np

from shared.infrastructure.local_embeddings.backends import open_backend
from shared.infrastructure.local_embeddings.backends.protocol import BackendSpec
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig, TokenizeOptions
from shared.infrastructure.local_embeddings.devices import usable_cpus
from shared.infrastructure.local_embeddings.errors import WorkerCrashedError
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.local_embeddings.vectors import Vectors
from shared.infrastructure.local_embeddings.worker.crew import Crew
from shared.infrastructure.local_embeddings.worker.messages import (
    OpenBackend,
    Request,
    Start,
)
from shared.infrastructure.local_embeddings.worker.process import WorkerDeath
from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import ConfigurationError

_GRACE = 5.0  # seconds in which workers close their backends


class ProcessBackend:
    """A backend that runs in worker processes, each with a whole copy of it.

    What kills a worker costs a batch one retry: a crash of native code, `kill -9`, the system when
    memory runs out, or ourselves when it does not answer. Its successor loads while others work.
    POSIX only.

    ::

        LocalEmbeddingPool(config, size=2, isolation="process")

    Args:
        config: What each worker loads. Unless it says how many CPU threads a worker uses, they
            share out the CPUs of this process.
        size: Workers, so passes at the same time; 2; at least 1.
        open: Loads the model, in the worker: a function that can be imported there.
        timeout: Seconds without an answer after which a worker is killed; 60; None is never.
        load_timeout: The same while it loads the model; 600.
        clock: Measures the pauses between starts that fail.

    Raises:
        ConfigurationError: `size` is less than 1, or `open` cannot be imported.
        ServiceError: What `open` raised.
        ModelLoadError: A library failed, or a worker died, while it loaded the model.
    """

    def __init__(
        self,
        config: LocalEmbeddingConfig,
        size: int = 2,
        open: OpenBackend = open_backend,  # noqa: A002 - as the function it is by default
        *,
        timeout: float | None = 60.0,
        load_timeout: float | None = 600.0,
        clock: Clock = MONOTONIC,
    ) -> None:
        if size < 1:
            raise ConfigurationError(f"a model needs at least 1 worker, not {size}")
        _check_importable(open)
        if config.threads is None:
            config = config.model_copy(update={"threads": max(1, usable_cpus() // size)})
        self._timeout = timeout
        self._crew = Crew(Start(open, config), size, load_timeout, clock)
        self.spec: BackendSpec = replace(
            self._crew.open(), concurrent=True, tokenizes_anywhere=False
        )

    @property
    def workers(self) -> dict[str, Any]:
        """Size, process ids, crashes and restarts until now, as plain JSON types."""
        return self._crew.snapshot()

    def tokenize(self, texts: Sequence[str], options: TokenizeOptions) -> TokenBatch:
        # A subclass of str may be unknown to the worker, or refer to half of a document.
        plain = [text if type(text) is str else str.__str__(text) for text in texts]
        request = Request("tokenize", (plain, options))
        # If the texts are to blame, the second time they must not end somebody's pass with them.
        return cast(
            "TokenBatch", _either(partial(self._aside, request), partial(self._run, request))
        )

    def forward(self, batch: TokenBatch, out: Vectors) -> None:
        run = partial(self._run, Request("forward", (batch,)), out)
        vectors = _either(run, run)
        if not np.may_share_memory(vectors, out):
            out[:] = vectors

    def warm_up(self) -> None:
        self._crew.warm_up()

    def trim(self) -> None:
        self._crew.tell(Request("trim"), self._timeout)

    def close(self) -> None:
        self._crew.close(_GRACE)

    def _run(self, request: Request, into: Vectors | None = None) -> Any:
        with self._crew.idle() as worker:
            return worker.run(request, self._timeout, into)

    def _aside(self, request: Request) -> Any:
        with self._crew.any() as worker:
            return worker.run_aside(request, self._timeout)


def _either(first: Callable[[], Any], second: Callable[[], Any]) -> Any:
    """Return what the first says or, if its worker dies, the second."""
    endings: list[str] = []
    killed, silent = True, False
    for attempt in (first, second):
        try:
            return attempt()
        except WorkerDeath as death:
            endings.append(str(death))
            killed, silent = killed and death.was_killed, silent or death.was_silent
    error = WorkerCrashedError(
        f"two workers in a row died of the same texts: {' and '.join(endings)}; embed fewer or "
        "shorter texts at a time, or give the workers more memory or time"
    )
    error.was_killed, error.was_silent = killed, silent
    raise error


def _check_importable(open_: OpenBackend) -> None:
    module = getattr(open_, "__module__", "")
    try:
        pickle.dumps(open_)
    except (pickle.PicklingError, AttributeError, TypeError) as exc:
        raise ConfigurationError(f"a worker cannot import what opens its backend: {exc}") from exc
    if module == "__main__":
        raise ConfigurationError(
            "a worker cannot import what opens its backend: move it out of the main script"
        )
