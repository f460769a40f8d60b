"""From keys to outcomes: each different item is looked up or computed once, whoever asks for it.

Nothing that is under way belongs to a caller: one who leaves takes nothing from the others, and
what is refused to one is not refused to those who only waited beside him.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from services.embedding.backends.protocol import Backend, Prepared
from services.embedding.caching import EmbeddingCache
from services.embedding.errors import ServiceStoppedError
from services.embedding.options import CacheUse, Item, Lane, Reading
from services.embedding.outcome import Embedded, Outcome
from services.embedding.scheduling import Job, Scheduler
from shared.infrastructure.local_embeddings import NonFiniteVectorError
from shared.infrastructure.resilience import (
    CallRefusedError,
    Clock,
    DeadlineExceededError,
    deadline,
)

# Items that are tokenized before those that are ready go to the scheduler.
_CHUNK = 256
# Bytes of a text that give a token, on the low side: mixed languages have fewer than English.
_BYTES_PER_TOKEN = 3.2
_URGENCY = {lane: rank for rank, lane in enumerate(Lane)}

# What is refused to him who started a computation says nothing to those who joined it.
_REFUSED = (CallRefusedError, DeadlineExceededError)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms the items of a call are embedded.

    Attributes:
        reading: How they are read.
        lane: How urgent they are.
        tenant: On whose behalf.
        timeout: Seconds from now after which the caller gives up; None is never.
        deadline: When that is, or the caller's own deadline before it, on the scheduler's clock.
        cache: What to do with the cache.
    """

    reading: Reading
    lane: Lane = Lane.DEFAULT
    tenant: str = ""
    timeout: float | None = None
    deadline: float | None = None
    cache: CacheUse = CacheUse.USE


class _Ticket:
    """What a caller waits for: `missing` more outcomes."""

    __slots__ = ("cached", "done", "missing", "outcomes")

    def __init__(self, missing: int, outcomes: dict[bytes, Outcome], cached: set[bytes]) -> None:
        self.missing = missing
        self.outcomes = outcomes
        self.cached = cached
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, key: bytes, outcome: Outcome, *, cached: bool) -> None:
        self.outcomes[key] = outcome
        if cached:
            self.cached.add(key)
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(None)


class _Flight:
    """An item on its way, and those who wait for it."""

    __slots__ = ("cache", "deadline", "item", "key", "lane", "row", "shares_row", "tickets")

    def __init__(self, key: bytes, item: Item, terms: Terms) -> None:
        self.key = key
        self.item = item
        self.cache = terms.cache
        self.lane = terms.lane
        self.deadline = terms.deadline
        self.tickets: list[_Ticket] = []
        self.row: _Row | None = None
        self.shares_row = False

    def joined_on(self, terms: Terms) -> None:
        """Make it as urgent as its most urgent caller, and as patient as the most patient one."""
        if _URGENCY[terms.lane] < _URGENCY[self.lane]:
            self.lane = terms.lane
        self.deadline = _later(self.deadline, terms.deadline)


class _Row:
    """A row of token ids in the scheduler, and the items that read so."""

    __slots__ = ("flights", "identity", "job")

    def __init__(self, identity: object) -> None:
        self.identity = identity
        self.flights: list[_Flight] = []
        self.job: Job


class Resolver:
    """Single flight over cache, tokenizer and model.

    Args:
        backend: Prepares items.
        cache: Asked first, and told of every vector.
        scheduler: Computes what is prepared.
        clock: Source of monotonic time.
    """

    def __init__(
        self, backend: Backend, cache: EmbeddingCache, scheduler: Scheduler, clock: Clock
    ) -> None:
        self._clock = clock
        self._backend = backend
        self._cache = cache
        self._scheduler = scheduler
        self._flights: dict[tuple[bytes, CacheUse], _Flight] = {}
        self._rows: dict[object, _Row] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._joined = 0
        self._same_tokens = 0

    async def resolve(
        self, items: Mapping[bytes, Item], terms: Terms
    ) -> tuple[dict[bytes, Outcome], set[bytes]]:
        """Return what came of each item, and which of them came out of the cache.

        Raises:
            QueueFullError: Too much work is waiting; nothing of this call was queued.
            DeadlineExceededError: It would take longer than the deadline allows.
            ServiceStoppedError: The service is not running.
        """
        outcomes: dict[bytes, Outcome] = {}
        missing: dict[bytes, Item] = {}
        for key, item in items.items():
            known = self._cache.get(key) if terms.cache is CacheUse.USE else None
            if known is None:
                missing[key] = item
            else:
                outcomes[key] = known
        cached = set(outcomes)
        if not missing:
            return outcomes, cached
        if terms.timeout is None:
            await self._compute(missing, terms, outcomes, cached)
        else:
            async with deadline(terms.timeout, clock=self._clock):
                await self._compute(missing, terms, outcomes, cached)
        return outcomes, cached

    async def stop(self) -> None:
        """Wait for what is being prepared; if cancelled, give it up."""
        try:
            while self._tasks:
                await asyncio.wait(self._tasks)
        except asyncio.CancelledError:
            for task in self._tasks:
                task.cancel()
            raise

    def snapshot(self) -> dict[str, Any]:
        """Return counters as plain JSON types."""
        return {
            "flights": len(self._flights),
            "joined_count": self._joined,
            "same_tokens_count": self._same_tokens,
        }

    async def _compute(
        self,
        missing: Mapping[bytes, Item],
        terms: Terms,
        outcomes: dict[bytes, Outcome],
        cached: set[bytes],
    ) -> None:
        while missing:
            ticket = _Ticket(len(missing), outcomes, cached)
            joined = await self._fly(missing, terms, ticket)
            missing = {key: missing[key] for key in joined if isinstance(outcomes[key], _REFUSED)}

    async def _fly(
        self, items: Mapping[bytes, Item], terms: Terms, ticket: _Ticket
    ) -> Iterable[bytes]:
        """Wait until each item has its outcome; return the keys of what others had begun."""
        led: list[_Flight] = []
        joined: dict[bytes, _Flight] = {}
        for key, item in items.items():
            flight = self._flights.get((key, terms.cache))
            if flight is None:
                flight = self._flights[key, terms.cache] = _Flight(key, item, terms)
                led.append(flight)
            else:
                joined[key] = flight
                self._hurry(flight, terms)
            flight.tickets.append(ticket)
        self._joined += len(joined)
        try:
            if led:
                self._begin(led, terms)
            await ticket.done
        except BaseException:
            self._leave(ticket, itertools.chain(led, joined.values()))
            raise
        return [*joined, *(flight.key for flight in led if flight.shares_row)]

    def _hurry(self, flight: _Flight, terms: Terms) -> None:
        flight.joined_on(terms)
        if flight.row is not None:
            self._scheduler.hurry(flight.row.job, lane=flight.lane, deadline=flight.deadline)

    def _leave(self, ticket: _Ticket, flights: Iterable[_Flight]) -> None:
        for flight in flights:
            if ticket not in flight.tickets:
                continue  # it has landed
            flight.tickets.remove(ticket)
            row = flight.row
            if row is None:
                if not flight.tickets:
                    self._forget(flight)
            elif not any(other.tickets for other in row.flights) and self._scheduler.cancel(
                row.job
            ):
                self._rows.pop(row.identity, None)
                for other in row.flights:
                    self._forget(other)

    def _begin(self, flights: Sequence[_Flight], terms: Terms) -> None:
        if not self._asks_below(terms):
            items = [flight.item for flight in flights]
            prepared = self._backend.prepare_now(items, terms.reading)
            if prepared is not None:
                tokens = sum(item.tokens for item in prepared if isinstance(item, Prepared))
                self._admit(tokens, flights, terms)
                self._submit(flights, prepared, terms)
                return
            self._admit(self._estimate(flights), flights, terms)
        # In a context of its own: the deadline of whoever happens to start it is not its own.
        task = asyncio.create_task(self._work(flights, terms), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _asks_below(self, terms: Terms) -> bool:
        return terms.cache is CacheUse.USE and self._cache.has_lower_tiers

    async def _work(self, flights: Sequence[_Flight], terms: Terms) -> None:
        """Look into the lower tiers, then prepare and submit what is not there."""
        try:
            if self._asks_below(terms):
                await self._fetch(flights)
                flights = _wanted(flights)
                self._admit(self._estimate(flights), flights, terms)
            for start in range(0, len(flights), _CHUNK):
                chunk = _wanted(flights[start : start + _CHUNK])
                items = [flight.item for flight in chunk]
                self._submit(chunk, await self._backend.prepare(items, terms.reading), terms)
        except asyncio.CancelledError:
            self._give_up(flights, ServiceStoppedError("the embedding service is stopping"))
            raise
        except Exception as exc:  # not ours to judge: it is the outcome of those it hits
            self._give_up(flights, exc)

    async def _fetch(self, flights: Sequence[_Flight]) -> None:
        found = await self._cache.fetch([flight.key for flight in flights])
        for flight in flights:
            if (entry := found.get(flight.key)) is not None:
                self._settle(flight, entry, cached=True)

    def _admit(self, tokens: int, flights: Sequence[_Flight], terms: Terms) -> None:
        if tokens:
            self._scheduler.admit(
                tokens,
                lane=terms.lane,
                tenant=terms.tenant,
                deadline=terms.deadline,
                call=flights[0].key,
            )

    def _estimate(self, flights: Iterable[_Flight]) -> int:
        longest = self._backend.facts.max_length or math.inf
        return sum(int(min(estimated_tokens(flight.item), longest)) for flight in flights)

    def _submit(
        self, flights: Sequence[_Flight], prepared: Sequence[Prepared | Exception], terms: Terms
    ) -> None:
        jobs: list[Job] = []
        for flight, item in zip(flights, prepared, strict=True):
            if isinstance(item, Exception):
                self._settle(flight, item)
                continue
            if not flight.tickets:
                continue  # everybody left while it was being prepared
            identity = None if item.identity is None else (item.identity, item.group)
            row = None if identity is None else self._rows.get(identity)
            if row is None:
                row = self._new_row(flight, item, identity, terms.tenant)
                jobs.append(row.job)
            else:
                flight.shares_row = True
                self._same_tokens += 1
                self._scheduler.hurry(row.job, lane=flight.lane, deadline=flight.deadline)
            row.flights.append(flight)
            flight.row = row
        self._scheduler.submit(jobs)

    def _new_row(self, flight: _Flight, item: Prepared, identity: object, tenant: str) -> _Row:
        row = _Row(identity)
        row.job = Job(
            item,
            partial(self._on_outcome, row),
            lane=flight.lane,
            tenant=tenant,
            deadline=flight.deadline,
        )
        if identity is not None:
            self._rows[identity] = row
        return row

    def _on_outcome(self, row: _Row, outcome: Outcome) -> None:
        self._rows.pop(row.identity, None)
        if isinstance(outcome, Embedded) and not np.isfinite(outcome.vector).all():
            outcome = NonFiniteVectorError("the model answered NaN or infinity")
        if isinstance(outcome, Embedded):
            keep = [flight.key for flight in row.flights if flight.cache is not CacheUse.BYPASS]
            if keep:
                self._cache.put(dict.fromkeys(keep, outcome))
        for flight in row.flights:
            self._settle(flight, outcome)

    def _settle(self, flight: _Flight, outcome: Outcome, *, cached: bool = False) -> None:
        self._forget(flight)
        tickets, flight.tickets = flight.tickets, []
        for ticket in tickets:
            ticket.settle(flight.key, outcome, cached=cached)

    def _forget(self, flight: _Flight) -> None:
        # Another one may have begun for the same item since this one was left.
        if self._flights.get((flight.key, flight.cache)) is flight:
            del self._flights[flight.key, flight.cache]

    def _give_up(self, flights: Iterable[_Flight], error: Exception) -> None:
        for flight in flights:
            if flight.row is None:
                self._settle(flight, error)


def estimated_tokens(item: Item) -> int:
    """Return about how many tokens an item has: those of ids exactly, at least 1."""
    if isinstance(item, tuple):
        return len(item)
    return 2 + math.ceil(len(item.encode("utf-8", "replace")) / _BYTES_PER_TOKEN)


def _wanted(flights: Iterable[_Flight]) -> list[_Flight]:
    return [flight for flight in flights if flight.tickets]


def _later(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else max(first, second)
