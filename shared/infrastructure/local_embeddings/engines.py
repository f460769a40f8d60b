"""The engines of a model, one life after another."""

from __future__ import annotations

from collections.abc import Callable

from shared.infrastructure.local_embeddings.backends import BackendSpec
from shared.infrastructure.local_embeddings.engine import Engine
from shared.infrastructure.resilience.errors import ServiceError


class Engines:
    """The engine that takes calls now; one that is retired has a successor once it is closed.

    Args:
        make: Makes an engine, which begins to open.

    Attributes:
        spec: Facts of the model as it was loaded last; None before it ever was.
    """

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self._engine: Engine | None = None
        self.spec: BackendSpec | None = None

    @property
    def ready(self) -> Engine | None:
        """The engine, if it is open."""
        return self._engine if self._engine and self._engine.is_open else None

    async def current(self) -> Engine:
        """Return an engine that takes calls; it may still be opening."""
        while (engine := self._engine) and engine.retired:
            await engine.closed()
            self._forget(engine)
        if engine is None:
            engine = self._engine = self._make()
        return engine

    async def open(self, engine: Engine) -> BackendSpec:
        """Wait until an engine is open; one that cannot be is forgotten.

        Raises:
            ServiceError: The model could not be loaded.
        """
        try:
            self.spec = spec = await engine.opened()
        except ServiceError:
            # Forgotten at once, so that the next call tries again.
            engine.retire()
            self._forget(engine)
            raise
        return spec

    async def loaded(self) -> BackendSpec:
        """Return the facts of the model; load it if it never was."""
        return self.spec or await self.open(await self.current())

    async def close(self) -> None:
        """Retire the engine, and wait until it has given everything back.

        Raises:
            Exception: It could not.
        """
        engine = self._engine
        if engine is None:
            return
        engine.retire()
        error = await engine.closed()
        self._forget(engine)
        if error:
            raise error

    def _forget(self, engine: Engine) -> None:
        if self._engine is engine:
            self._engine = None
