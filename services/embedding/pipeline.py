"""The way of a call below the facade: options to terms, items to keys, keys to outcomes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any

from services.embedding.backends.protocol import Backend, BackendFacts, Prepared
from services.embedding.caching import EmbeddingCache, key_function, key_space
from services.embedding.errors import UnknownPromptError
from services.embedding.items import as_read, read_items
from services.embedding.options import CacheUse, EmbedOptions, Item, Lane, Reading
from services.embedding.resolving import Resolver, Terms, estimated_tokens
from services.embedding.results import Resolved, blamed, resolved
from services.embedding.scheduling import Scheduler, SchedulerConfig
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.local_embeddings import InvalidTextError, Truncation
from shared.infrastructure.local_embeddings.model_files.prompts import prompt_for
from shared.infrastructure.resilience import Clock, ConfigurationError
from shared.infrastructure.resilience.timeout import within_deadline

# Readings whose key functions are kept: a model has few prompts, but callers may bring their own.
_READINGS_KEPT = 64


class Pipeline:
    """Cache, tokenizer, scheduler and model, in the order a call meets them.

    Args:
        backend: What embeds.
        settings: Sizes and limits.
        clock: Source of monotonic time.
    """

    def __init__(self, backend: Backend, settings: EmbeddingSettings, clock: Clock) -> None:
        self._backend = backend
        self._settings = settings
        self._clock = clock
        self._cache = EmbeddingCache.from_settings(settings, clock=clock)
        self._scheduler = Scheduler(
            backend.embed,
            SchedulerConfig(
                max_queue_seconds=settings.max_queue_seconds,
                max_bulk_seconds=settings.max_bulk_seconds,
            ),
            clock=clock,
        )
        self._resolver = Resolver(backend, self._cache, self._scheduler, clock)
        self._key = functools.lru_cache(_READINGS_KEPT)(self._key_function)
        self._space: str | None = None

    async def start(self) -> None:
        """Begin to take calls; the backend has started."""
        facts = self._backend.facts
        self._space = key_space(facts, self._settings.cache_numerics)
        self._key.cache_clear()
        await self._cache.start(facts.dimension)
        self._scheduler.start(facts)

    async def stop(self) -> None:
        """Refuse new calls, finish those that are here, and write down what is to be kept."""
        try:
            await self._resolver.stop()
            await self._scheduler.stop()
        except asyncio.CancelledError:
            self._scheduler.abandon()
            raise
        finally:
            await self._cache.close()

    async def run(
        self, items: Sequence[Item], options: EmbedOptions, *, strict: bool = True
    ) -> Resolved:
        """Return what came of each item.

        Args:
            items: What to embed.
            options: How.
            strict: Whether an item that cannot be read is the error of the whole call, before
                any work is done for it.

        Raises:
            InvalidTextError: An item cannot be read.
            UnknownPromptError: The model has no prompt of that name.
            CallRefusedError: Too much is waiting, or the service is stopping.
            DeadlineExceededError: It would take longer than the deadline allows.
        """
        reading = self.reading(options)
        limit, side = self._settings.max_text_length, self._side(reading)
        read, keys = await read_items(items, limit, side, self._key(reading))
        different: dict[bytes, Item] = {}
        unread = 0
        for row, (item, key) in enumerate(zip(read, keys, strict=True)):
            if isinstance(key, bytes):
                different[key] = item
            elif strict:
                raise blamed(key, row)
            else:
                unread += 1
        terms = self._terms(reading, options, read)
        outcomes, cached = await self._resolver.resolve(different, terms)
        return resolved(
            [outcomes[key] if isinstance(key, bytes) else key for key in keys],
            [key in cached for key in keys],
            {row for row, item in enumerate(read) if len(item) < len(items[row])},
            len(keys) - unread - len(different),
        )

    async def prepare(
        self, items: Sequence[Item], options: EmbedOptions
    ) -> Sequence[Prepared | Exception]:
        """Return each item as the backend would put it into a batch."""
        reading = self.reading(options)
        limit, side = self._settings.max_text_length, self._side(reading)
        read: list[Item] = []
        for row, item in enumerate(items):
            try:
                read.append(as_read(item, limit, side))
            except InvalidTextError as exc:
                raise blamed(exc, row) from None
        return await self._backend.prepare(read, reading)

    def reading(self, options: EmbedOptions) -> Reading:
        """Return how items are read under these options."""
        facts = self._backend.facts
        given = (options.input_type, options.prompt_name, options.prompt)
        if sum(value is not None for value in given) > 1:
            raise ConfigurationError("give one of input_type, prompt_name and prompt, not several")
        if options.input_type is not None and facts.takes_input_type:
            return Reading("", options.truncation, options.input_type)
        return Reading(_prompt(facts, options), options.truncation)

    def clear_cache(self) -> None:
        """Forget every vector."""
        self._cache.clear()

    def snapshot(self) -> dict[str, Any]:
        """Return `scheduler`, `cache` and the resolver's counters as plain JSON types."""
        return {
            **self._resolver.snapshot(),
            "scheduler": self._scheduler.snapshot(),
            "cache": self._cache.snapshot(),
        }

    def _side(self, reading: Reading) -> Truncation:
        return reading.truncation or self._backend.facts.truncation

    def _terms(self, reading: Reading, options: EmbedOptions, items: Sequence[Item]) -> Terms:
        left = within_deadline(options.timeout)
        return Terms(
            reading,
            options.lane or self._lane(items),
            options.tenant,
            options.timeout,
            None if left is None else self._clock.now() + left,
            options.cache if self._space is not None else CacheUse.BYPASS,
        )

    def _lane(self, items: Sequence[Item]) -> Lane:
        # A token is a byte at least, but for the few special ones.
        if 4 * sum(map(len, items)) < self._settings.bulk_tokens:
            return Lane.DEFAULT
        tokens = sum(map(estimated_tokens, items))
        return Lane.BULK if tokens >= self._settings.bulk_tokens else Lane.DEFAULT

    def _key_function(self, reading: Reading) -> Callable[[Item], bytes]:
        return key_function(self._space or self._backend.facts.fingerprint, reading)


def _prompt(facts: BackendFacts, options: EmbedOptions) -> str:
    if options.prompt is not None:
        return options.prompt
    if options.prompt_name is not None:
        if options.prompt_name not in facts.prompts:
            raise UnknownPromptError(
                f"{facts.model_name} has no prompt {options.prompt_name!r}, but "
                f"{sorted(facts.prompts)}"
            )
        return facts.prompts[options.prompt_name]
    match options.input_type:
        case None:
            return facts.default_prompt
        case "query" | "document":
            return prompt_for(facts.prompts, options.input_type)
        case other:
            # Such as "classification": a prompt of that name, if the model has one.
            return facts.prompts.get(other, facts.default_prompt)
