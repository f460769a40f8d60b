"""Several models in one process, of which those that nobody uses make room for others."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Self

from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.memory.governor import MemoryGovernor, Stage
from shared.infrastructure.local_embeddings.model import LocalEmbeddingModel
from shared.infrastructure.resilience.clock import MONOTONIC, Clock, TimerHandle
from shared.infrastructure.resilience.errors import ConfigurationError

_log = logging.getLogger(__name__)

ModelFactory = Callable[[LocalEmbeddingConfig], LocalEmbeddingModel]


class ModelCache:
    """Models by configuration: loaded when they are asked for, unloaded when they are idle.

    A model in use is never unloaded. Of the others those least recently used go while there are
    too many, or too large ones; every one goes when it has been idle for `keep_alive`, and one
    after another while memory is short. For use within one event loop.

    ::

        async with ModelCache(max_models=2) as cache:
            async with cache.use(LocalEmbeddingConfig(backend=ModelBackend.ONNX)) as model:
                vectors = await model.embed(["cat", "kitten"])

    Args:
        max_models: Loaded models at most, unless more are in use; 4; at least 1.
        max_bytes: Bytes of their weights at most, unless more are in use; None is no bound. It is
            known only of a model that is loaded, so that for a moment there may be one too many.
        keep_alive: Seconds a model stays loaded while nobody uses it; None is for ever.
        governor: Calls for relief while memory is short, here as in the models; None is one for
            this cache alone.
        clock: Source of monotonic time.
        model_factory: Makes a model that is not loaded yet; None makes a `LocalEmbeddingModel`.
        weight_bytes: Tells the size of a loaded model; its weights as they lie on the disk.

    Raises:
        ConfigurationError: `max_models`, `max_bytes` or `keep_alive` is out of range.
    """

    def __init__(
        self,
        *,
        max_models: int = 4,
        max_bytes: int | None = None,
        keep_alive: float | None = 300.0,
        governor: MemoryGovernor | None = None,
        clock: Clock = MONOTONIC,
        model_factory: ModelFactory | None = None,
        weight_bytes: Callable[[LocalEmbeddingModel], int] | None = None,
    ) -> None:
        if max_models < 1:
            raise ConfigurationError(f"max_models must be at least 1, not {max_models}")
        if max_bytes is not None and max_bytes < 0:
            raise ConfigurationError(f"max_bytes must be at least 0, not {max_bytes}")
        if keep_alive is not None and keep_alive < 0:
            raise ConfigurationError(f"keep_alive must be at least 0, not {keep_alive}")
        self._max_models = max_models
        self._max_bytes = max_bytes
        self._keep_alive = keep_alive
        self._governor = governor or MemoryGovernor(clock=clock)
        self._clock = clock
        self._make = model_factory or functools.partial(
            LocalEmbeddingModel, clock=clock, governor=self._governor
        )
        self._weight_bytes = weight_bytes or _weight_bytes
        # The least recently used first.
        self._entries: OrderedDict[LocalEmbeddingConfig, _Entry] = OrderedDict()
        self._unregister: dict[str, Callable[[], None]] = {}
        self._closing = False
        self._emptied = asyncio.Event()
        self._hits = self._loads = self._unloads = self._unload_errors = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @contextlib.asynccontextmanager
    async def use(self, config: LocalEmbeddingConfig) -> AsyncGenerator[LocalEmbeddingModel]:
        """Lend the model of a configuration, loaded, for as long as the block runs.

        Raises:
            ServiceError: It could not be loaded; as `LocalEmbeddingModel.load` does.
            ConfigurationError: The cache is closed.
        """
        if self._closing:
            raise ConfigurationError("the model cache is closed; make a new one")
        entry = self._lend(config)
        try:
            if entry.loaded:
                self._hits += 1
            else:
                await self._load(entry)
            yield entry.model
        finally:
            self._take_back(entry)

    async def aclose(self) -> None:
        """Lend no more; wait for the models in use, and until every one is unloaded."""
        self._closing = True
        while self._unregister:
            self._unregister.popitem()[1]()
        for entry in list(self._entries.values()):
            self._settle(entry)
        if self._entries:
            await self._emptied.wait()

    def snapshot(self) -> dict[str, Any]:
        """Return the models, least recently used first, and counters as plain JSON types."""
        return {
            "models": [
                {
                    "model_name": config.model_name,
                    "backend": config.backend.value,
                    "loaded": entry.loaded,
                    "uses": entry.leases,
                    "size_bytes": entry.size_bytes,
                }
                for config, entry in self._entries.items()
            ],
            "max_models": self._max_models,
            "max_bytes": self._max_bytes,
            "hit_count": self._hits,
            "load_count": self._loads,
            "unload_count": self._unloads,
            "unload_error_count": self._unload_errors,
        }

    def _lend(self, config: LocalEmbeddingConfig) -> _Entry:
        entry = self._entries.get(config)
        if entry is None:
            entry = self._entries[config] = _Entry(config, self._make(config))
        entry.leases += 1
        entry.stay()
        return entry

    def _take_back(self, entry: _Entry) -> None:
        entry.leases -= 1
        self._entries.move_to_end(entry.config)
        self._settle(entry)
        self._make_room()

    def _settle(self, entry: _Entry) -> None:
        """Decide what becomes of an entry that may be idle."""
        entry.stay()
        if entry.leases or entry.unloading:
            return
        # A load that failed leaves nothing to keep, and one whose callers were all cancelled may
        # still be under way.
        if self._closing or not entry.loaded:
            self._unload(entry)
        elif self._keep_alive is not None:
            expire = functools.partial(self._unload, entry)
            entry.timer = self._clock.call_later(self._keep_alive, expire)

    async def _load(self, entry: _Entry) -> None:
        self._make_room()
        # Until what has to go has given its memory back, and this model too if it was going.
        if going := [other.unloading for other in self._entries.values() if other.unloading]:
            await asyncio.wait(going)
        await entry.model.load()
        if not entry.loaded:
            entry.loaded = True
            self._loads += 1
            entry.device = str(entry.model.get_info()["device"])
            entry.size_bytes = self._weight_bytes(entry.model)
            self._offer_relief(entry.device)
            self._make_room()

    def _make_room(self) -> None:
        while self._is_over() and (entry := next(iter(self._idle()), None)):
            self._unload(entry)

    def _is_over(self) -> bool:
        kept = [entry for entry in self._entries.values() if entry.leases or not entry.unloading]
        if len(kept) > self._max_models:
            return True
        size = sum(entry.size_bytes for entry in kept)
        return self._max_bytes is not None and size > self._max_bytes

    def _idle(self, device: str | None = None) -> list[_Entry]:
        """Return the models that may go, of one device if it is named."""
        return [
            entry
            # A copy, since a thread of the governor's may be the one who asks.
            for entry in tuple(self._entries.values())
            if not entry.leases and not entry.unloading and device in {None, entry.device}
        ]

    def _unload(self, entry: _Entry) -> None:
        entry.stay()
        # The entry holds the task, and this object the entry until the task has ended.
        entry.unloading = asyncio.get_running_loop().create_task(self._run_unload(entry))

    async def _run_unload(self, entry: _Entry) -> None:
        try:
            # No matter why it was to go: who has come for it since then keeps it.
            if not entry.leases:
                self._unloads += entry.loaded
                entry.loaded = False
                entry.size_bytes = 0
                await entry.model.unload()
        except Exception:
            self._unload_errors += 1
            _log.warning("%s did not unload cleanly", entry.config.model_name, exc_info=True)
        finally:
            entry.unloading = None
            if not entry.leases:
                del self._entries[entry.config]
            if self._closing and not self._entries:
                self._emptied.set()

    def _offer_relief(self, device: str) -> None:
        if self._closing or device in self._unregister:
            return
        loop = asyncio.get_running_loop()

        def relieve() -> bool:
            idle = self._idle(device)
            if idle:
                loop.call_soon_threadsafe(self._relieve, device)
            return len(idle) > 1

        self._unregister[device] = self._governor.register(Stage.MODELS, relieve, device=device)

    def _relieve(self, device: str) -> None:
        """Unload the least recently used model of a device, if one is still idle."""
        if idle := self._idle(device):
            self._unload(idle[0])


class _Entry:
    """A model, and who uses it."""

    def __init__(self, config: LocalEmbeddingConfig, model: LocalEmbeddingModel) -> None:
        self.config = config
        self.model = model
        self.leases = 0
        self.loaded = False
        self.device = ""
        self.size_bytes = 0
        self.timer: TimerHandle | None = None
        self.unloading: asyncio.Task[None] | None = None

    def stay(self) -> None:
        """Call off the end of its time."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def _weight_bytes(model: LocalEmbeddingModel) -> int:
    path = Path(model.get_info()["model_path"] or "/nowhere")
    files = [file for pattern in ("*", "*/*") for file in path.glob(f"{pattern}.safetensors")]
    return sum(file.stat().st_size for file in files)
