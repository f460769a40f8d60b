"""A server as a backend of the service."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any, cast

import httpx
import numpy as np
from numpy.typing import NDArray

from services.embedding.backends.protocol import BackendFacts, Prepared
from services.embedding.backends.remote.corpus import (
    Bounds,
    CorpusRun,
    EmbeddedCorpus,
    Progress,
)
from services.embedding.backends.remote.dialects import Form
from services.embedding.backends.remote.endpoint import Endpoint
from services.embedding.backends.remote.packing import estimated_tokens
from services.embedding.backends.remote.reply import Reply
from services.embedding.errors import NotOfferedError, ServiceStoppedError
from services.embedding.options import Item, Reading
from services.embedding.outcome import Embedded, Outcome
from services.embedding.settings import EmbeddingSettings
from shared.infrastructure.local_embeddings import InvalidTextError
from shared.infrastructure.resilience import MONOTONIC, Clock

_AS_IT_IS = Reading()
# What is estimated in some 50 microseconds.
_ITEMS_NOW, _CHARACTERS_NOW = 32, 16_384


class RemoteBackend:
    """A server that embeds: OpenAI's API, TEI's or Cohere's.

    Tokens are estimated, at 3.2 bytes each: only the server can count them. What it says of tokens
    is of a whole request; an item's `token_count` is its share by length, unless the server says
    more, as ours does.

    Its fingerprint is `vector_space`, if that is declared. Else it is a hash of the API and what
    the server tells as its own, or, if it tells none, of URL, API, model and dimension: a model
    here never has it, as the server may apply a prompt, or scale, of its own.

    Args:
        settings: `remote_url` and what belongs to it, `model_name`, `failure_threshold`;
            `batch_size` if it was given.
        vector_space: Fingerprint to have, on the word of the caller: of two backends that have the
            same one, and the same dimension, either may stand in for the other, and one finds in a
            cache what the other put there.
        transport: Transport to use instead of the client's own.
        clock: Source of monotonic time.
    """

    def __init__(
        self,
        settings: EmbeddingSettings,
        *,
        vector_space: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock = MONOTONIC,
    ) -> None:
        self._settings = settings
        self._vector_space = vector_space
        self._clock = clock
        self._endpoint = Endpoint(settings, transport=transport, clock=clock)
        self._facts: BackendFacts | None = None

    @property
    def facts(self) -> BackendFacts:
        if self._facts is None:
            raise ServiceStoppedError("the backend has not been started")
        return self._facts

    @property
    def is_healthy(self) -> bool:
        # Only traffic can tell, and there would be none if this said no.
        return True

    async def start(self) -> None:
        await self._endpoint.open()
        self._facts = self._new_facts()

    async def stop(self) -> None:
        await self._endpoint.close()

    def prepare_now(
        self, items: Sequence[Item], reading: Reading
    ) -> Sequence[Prepared | Exception] | None:
        if len(items) > _ITEMS_NOW or sum(map(len, items)) > _CHARACTERS_NOW:
            return None
        return [self._prepared(item, reading) for item in items]

    async def prepare(
        self, items: Sequence[Item], reading: Reading
    ) -> Sequence[Prepared | Exception]:
        prepared: list[Prepared | Exception] = []
        for start in range(0, len(items), _ITEMS_NOW):
            if start:
                await asyncio.sleep(0)
            part = items[start : start + _ITEMS_NOW]
            prepared += [self._prepared(item, reading) for item in part]
        return prepared

    def token_ids(self, prepared: Prepared) -> NDArray[np.int32]:
        raise NotOfferedError("only the server knows the token ids")

    async def embed(self, batch: Sequence[Prepared]) -> Sequence[Outcome]:
        items = [cast("Item", prepared.payload) for prepared in batch]
        form = cast("Form", batch[0].group)
        outcomes: list[Outcome | None] = [None] * len(items)
        for rows, result in await self._endpoint.embed(items, form):
            place = slice(rows.start, rows.stop)
            if isinstance(result, Reply):
                outcomes[place] = _embedded(result, items[place])
            else:
                outcomes[place] = [result] * len(rows)
        return cast("list[Outcome]", outcomes)

    async def embed_corpus(
        self,
        texts: Sequence[str],
        reading: Reading = _AS_IT_IS,
        *,
        progress: Progress | None = None,
    ) -> EmbeddedCorpus:
        """Embed very many texts, past scheduler and cache; those that fail do not stop the others.

        As many requests are under way as the server answers without queueing, `max_connections` at
        most. While the breaker is open they wait, for `request_timeout` at most without a success.

        Args:
            texts: The texts.
            reading: How they are read.
            progress: Told how many are done.

        Raises:
            NotOfferedError: The server has no such prompt.
            ServiceStoppedError: The backend has not been started.
        """
        form = self._endpoint.dialect.form(reading)
        facts, settings = self.facts, self._settings
        bounds = Bounds(
            max_items=facts.max_rows,
            max_tokens=facts.max_tokens,
            concurrency=settings.max_connections,
            patience=settings.request_timeout,
        )
        run = CorpusRun(self._endpoint, form, bounds, clock=self._clock, progress=progress)
        prompt = self._endpoint.dialect.prompt(reading)
        return await run.embed([prompt + text for text in texts] if prompt else texts)

    async def check_health(self) -> None:
        # Its own traffic says it, and a check would cost money.
        return None

    def snapshot(self) -> dict[str, Any]:
        return self._endpoint.snapshot()

    def _prepared(self, item: Item, reading: Reading) -> Prepared | Exception:
        dialect = self._endpoint.dialect
        try:
            form = dialect.form(reading, has_ids=not isinstance(item, str))
            payload = dialect.prompt(reading) + item if isinstance(item, str) else item
            return Prepared(estimated_tokens(payload), payload, group=form)
        except NotOfferedError as exc:
            return exc
        except UnicodeEncodeError as exc:
            return InvalidTextError(f"a text that is no Unicode: {exc}")

    def _new_facts(self) -> BackendFacts:
        settings, endpoint = self._settings, self._endpoint
        dialect = endpoint.dialect
        max_items = settings.remote_max_items or dialect.max_items
        if "batch_size" in settings.model_fields_set:
            max_items = min(max_items, settings.batch_size)
        return BackendFacts(
            model_name=settings.model_name,
            fingerprint=self._fingerprint(),
            dimension=endpoint.dimension,
            prompts=dialect.input_types,
            default_prompt=dialect.default_input_type,
            takes_input_type=dialect.takes_input_type,
            packed=True,
            # More would only wait for the rate limiter, each with a batch that could have grown.
            concurrency=min(settings.max_connections, settings.burst_size),
            max_rows=max_items,
            max_tokens=settings.remote_max_tokens or dialect.max_tokens,
            details={
                "url": endpoint.url,
                "api": settings.remote_api,
                "encoding": "base64" if dialect.as_base64 else "float",
                "remote_model": endpoint.model,
            },
        )

    def _fingerprint(self) -> str:
        endpoint, settings = self._endpoint, self._settings
        if self._vector_space is not None:
            return self._vector_space
        if endpoint.fingerprint:
            # Nothing of where it is: replicas are equal.
            identity = [settings.remote_api, endpoint.fingerprint]
        else:
            identity = [
                endpoint.url,
                settings.remote_api,
                settings.model_name,
                endpoint.model or "",
                str(endpoint.dimension),
            ]
        return hashlib.sha256("\n".join(identity).encode()).hexdigest()


def _embedded(reply: Reply, items: Sequence[Item]) -> list[Embedded]:
    truncated = reply.truncated or [False] * len(items)
    rows = zip(reply.vectors, reply.tokens_of(items).tolist(), truncated, strict=True)
    # Copies: a vector that is kept must not keep those of its whole request.
    return [Embedded(vector.copy(), tokens, cut) for vector, tokens, cut in rows]
