"""Several backends as one: the next does what the one before it could not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from services.embedding.backends.protocol import Backend, BackendFacts, Prepared
from services.embedding.errors import TextRejectedError, VectorSpaceError
from services.embedding.options import Item, Reading
from services.embedding.outcome import Outcome
from shared.infrastructure.local_embeddings import InvalidTextError
from shared.infrastructure.resilience import ConfigurationError

_THE_TEXTS_OWN = (TextRejectedError, InvalidTextError)


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """An item that another backend may have to prepare anew."""

    item: Item
    reading: Reading
    first: Prepared


class FallbackBackend:
    """Backends in order of preference, all with the same fingerprint.

    An item goes to the next one if the one before failed at it, unless it is the item's own fault.
    They all have to start: who cannot be asked for its fingerprint cannot be trusted to stand in.

    Args:
        backends: The preferred one first; at least one.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        if not backends:
            raise ConfigurationError("a fallback needs backends")
        self._backends = tuple(backends)

    @property
    def facts(self) -> BackendFacts:
        every = [backend.facts for backend in self._backends]
        return replace(
            every[0],
            max_rows=min(facts.max_rows for facts in every),
            max_tokens=min(facts.max_tokens for facts in every),
            packed=all(facts.packed for facts in every),
        )

    @property
    def is_healthy(self) -> bool:
        return any(backend.is_healthy for backend in self._backends)

    async def start(self) -> None:
        """Start all.

        Raises:
            VectorSpaceError: One of them makes other vectors than the first.
        """
        try:
            for backend in self._backends:
                await backend.start()
            self._check()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        await asyncio.gather(*(backend.stop() for backend in self._backends))

    def prepare_now(
        self, items: Sequence[Item], reading: Reading
    ) -> Sequence[Prepared | Exception] | None:
        prepared = self._backends[0].prepare_now(items, reading)
        return None if prepared is None else _tasks(items, reading, prepared)

    async def prepare(
        self, items: Sequence[Item], reading: Reading
    ) -> Sequence[Prepared | Exception]:
        return _tasks(items, reading, await self._backends[0].prepare(items, reading))

    def token_ids(self, prepared: Prepared) -> NDArray[np.int32]:
        return self._backends[0].token_ids(cast("_Task", prepared.payload).first)

    async def embed(self, batch: Sequence[Prepared]) -> Sequence[Outcome]:
        tasks = [cast("_Task", prepared.payload) for prepared in batch]
        outcomes = await _outcomes(self._backends[0], [task.first for task in tasks])
        for backend in self._backends[1:]:
            failed = [at for at, outcome in enumerate(outcomes) if _is_passed_on(outcome)]
            if not failed:
                break
            again = await _embed_anew(backend, [tasks[at] for at in failed])
            for at, outcome in zip(failed, again, strict=True):
                outcomes[at] = outcome
        return outcomes

    async def check_health(self) -> None:
        await asyncio.gather(*(backend.check_health() for backend in self._backends))

    def snapshot(self) -> dict[str, Any]:
        """Return the state of the first, and that of each one as `backends`."""
        every = [backend.snapshot() for backend in self._backends]
        return {**every[0], "backends": every}

    def _check(self) -> None:
        first, *others = [backend.facts for backend in self._backends]
        for number, facts in enumerate(others, start=2):
            if (facts.fingerprint, facts.dimension) != (first.fingerprint, first.dimension):
                raise VectorSpaceError(
                    f"backend {number}, {_name(facts)}, cannot stand in for {_name(first)}: its "
                    "vectors are others; if you know better, declare the same vector_space"
                )


def _name(facts: BackendFacts) -> str:
    where = facts.details.get("url", "here")
    return f"{facts.model_name} ({where}, {facts.dimension} numbers, {facts.fingerprint[:12]})"


def _tasks(
    items: Sequence[Item], reading: Reading, prepared: Sequence[Prepared | Exception]
) -> list[Prepared | Exception]:
    return [
        first
        if isinstance(first, Exception)
        else replace(first, payload=_Task(item, reading, first))
        for item, first in zip(items, prepared, strict=True)
    ]


def _is_passed_on(outcome: Outcome) -> bool:
    return isinstance(outcome, Exception) and not isinstance(outcome, _THE_TEXTS_OWN)


async def _outcomes(backend: Backend, batch: Sequence[Prepared]) -> list[Outcome]:
    try:
        return list(await backend.embed(batch))
    except Exception as exc:  # what came of all
        return [exc] * len(batch)


async def _embed_anew(backend: Backend, tasks: Sequence[_Task]) -> list[Outcome]:
    """Prepare tasks as this backend does, and embed those of each group of its own together."""
    outcomes: dict[int, Outcome] = {}
    groups: dict[object, list[tuple[int, Prepared]]] = {}
    for at, task in enumerate(tasks):
        (prepared,) = await backend.prepare([task.item], task.reading)
        if isinstance(prepared, Exception):
            outcomes[at] = prepared
        else:
            groups.setdefault(prepared.group, []).append((at, prepared))
    for group in groups.values():
        found = await _outcomes(backend, [prepared for _, prepared in group])
        outcomes.update(zip([at for at, _ in group], found, strict=True))
    return [outcomes[at] for at in range(len(tasks))]
