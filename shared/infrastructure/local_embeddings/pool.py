"""A model whose forward passes run side by side."""

from __future__ import annotations

from typing import Any, Literal

from shared.infrastructure.local_embeddings.backends import EmbeddingBackend, open_backend
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.devices import usable_cpus
from shared.infrastructure.local_embeddings.memory.governor import MemoryGovernor
from shared.infrastructure.local_embeddings.memory.readings import MemoryReading, read_memory
from shared.infrastructure.local_embeddings.model import BackendFactory, LocalEmbeddingModel
from shared.infrastructure.local_embeddings.worker import ProcessBackend
from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.errors import ConfigurationError

Isolation = Literal["thread", "process"]


class LocalEmbeddingPool(LocalEmbeddingModel):
    """A local model with several workers; a long call uses them all, short ones do not wait.

    Threads share one copy of the weights: the libraries let go of the GIL while they compute.
    Processes have a copy each, and a crash of the library ends one of them and not this one: it is
    replaced, and the pass it had is tried once more. Unless the configuration says how many CPU
    threads a worker uses, they share out the CPUs of the process.

    Args:
        config: What to load, and how each worker runs it.
        size: Workers; 2; at least 1.
        isolation: Whether they are threads of this process or processes of their own.
        clock: Source of monotonic time.
        backend_factory: Loads the model; as in `LocalEmbeddingModel`. With processes it is called
            in each, so that it must be a function that a module holds by its name.
        governor: Watches the memory; None is one for this pool alone.
    """

    def __init__(
        self,
        config: LocalEmbeddingConfig | None = None,
        size: int = 2,
        *,
        isolation: Isolation = "thread",
        clock: Clock = MONOTONIC,
        backend_factory: BackendFactory = open_backend,
        governor: MemoryGovernor | None = None,
    ) -> None:
        if size < 1:
            raise ConfigurationError(f"a pool needs at least 1 worker, not {size}")
        config = config or LocalEmbeddingConfig()
        if config.threads is None:
            config = config.model_copy(update={"threads": max(1, usable_cpus() // size)})
        self._size = size
        self._isolation = isolation
        self._open_in_process = backend_factory
        self._processes: ProcessBackend | None = None
        super().__init__(
            config,
            clock=clock,
            backend_factory=self._start_processes if isolation == "process" else backend_factory,
            workers=size,
            governor=governor or MemoryGovernor(read=self._read_memory, clock=clock),
        )

    def get_info(self) -> dict[str, Any]:
        """Return facts as `LocalEmbeddingModel.get_info` does, and `size` and `isolation`.

        With processes, `processes` tells of their ids, crashes and restarts.
        """
        info = super().get_info() | {"size": self._size, "isolation": self._isolation}
        if self._processes:
            info["processes"] = self._processes.workers
        return info

    def _start_processes(self, config: LocalEmbeddingConfig) -> EmbeddingBackend:
        self._processes = ProcessBackend(config, self._size, self._open_in_process)
        return self._processes

    def _read_memory(self) -> MemoryReading:
        return read_memory(self._processes.workers["pids"] if self._processes else ())
