"""The handlers that embed: one for each dialect, all of one shape."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from itertools import compress
from typing import Protocol

import orjson

from services.embedding.backends.protocol import BackendFacts
from services.embedding.options import CacheUse, Item
from services.embedding.process.big_json import SLICE
from services.embedding.process.fields import Fields, too_many_tokens
from services.embedding.process.openai import usage
from services.embedding.process.problems import not_ready
from services.embedding.process.quantize import quantized
from services.embedding.process.query import Query, check_dtypes, cut_items
from services.embedding.process.replies import ReplyCache
from services.embedding.process.writing import RAW
from services.embedding.results import Embeddings
from services.embedding.service import ProductionEmbeddingService
from shared.infrastructure.server import JSON, Header, HTTPError, Reply, Request

# Headers are no place for thousands of numbers: proxies refuse more than some kilobytes of them.
_NUMBERS_IN_HEADERS = 256
# Special tokens of an item, at most.
_SPECIAL_TOKENS = 8


class Dialect(Protocol):
    """How some API says what is to be embedded, and wants to hear what came of it."""

    def read(self, fields: Fields, prompts: Container[str], tenant: str) -> Query:
        """Read a body.

        Args:
            fields: The body.
            prompts: Names of the model's prompts.
            tenant: On whose behalf.

        Raises:
            HTTPError: It is malformed (400), or too much (413).
        """
        ...

    async def write(self, query: Query, embeddings: Embeddings, model: str) -> bytes:
        """Return the answer as JSON; `model` is the name the client knows it by."""
        ...


class EmbeddingHandler:
    """A route that embeds.

    Args:
        service: What embeds.
        dialect: How it is asked for.
        names: What clients may call the model.
        replies: Keeps what need not be made again; None if no two answers are the same.
    """

    def __init__(
        self,
        service: ProductionEmbeddingService,
        dialect: Dialect,
        names: Container[str],
        replies: ReplyCache | None = None,
    ) -> None:
        self._replies = replies
        self._service = service
        self._dialect = dialect
        self._names = names

    async def __call__(self, request: Request) -> Reply:
        service = self._service
        if not service.is_started:
            raise not_ready()
        if len(request.body) <= SLICE:
            query = self._read(request)
        else:
            query = await asyncio.to_thread(self._read, request)
            request.body = b""
        model = known_model(query.model, self._names, service.model_name)
        await bound_tokens(query, service)
        embeddings = await service.embed_batch(query.items, query.options)
        if request.headers.get(b"accept") == RAW:
            reply = raw_reply(query, embeddings)
        else:
            body = await self._dialect.write(query, embeddings, model)
            reply = Reply(body, 200, (JSON, *about(embeddings)))
        use = query.options.cache is CacheUse.USE
        if self._replies and use and all(embeddings.cached):
            self._replies.keep(request, reply, embeddings)
        return reply

    def _read(self, request: Request) -> Query:
        fields = Fields.parse(request.body, self._service.settings)
        query = self._dialect.read(fields, self._service.facts.prompts, request.tenant)
        check_dtypes(query)
        cut_items(query, self._service.settings.max_text_length, self._service.facts.truncation)
        return query


def known_model(given: str | None, names: Container[str], own: str) -> str:
    """Return the name of the model that the client gave, or its own.

    Raises:
        HTTPError: There is no such model (404).
    """
    if given is None:
        return own
    if given not in names:
        raise HTTPError(
            404,
            f"the model here is {own!r}, not {given!r}",
            code="model_not_found",
            param="model",
        )
    return given


async def bound_tokens(query: Query, service: ProductionEmbeddingService) -> None:
    """Refuse more tokens than a request may have; only very long ones are counted.

    Raises:
        HTTPError: They are too many (413).
    """
    limit = service.settings.max_request_tokens
    if most_tokens(query, service.facts) <= limit:
        return
    if sum(await service.count_tokens(query.items, query.options)) > limit:
        raise too_many_tokens(limit)


def most_tokens(query: Query, facts: BackendFacts) -> int:
    """Return as many tokens as items can have under a tokenizer that spends one on each byte."""
    prompts = (query.options.prompt or "", facts.default_prompt, *facts.prompts.values())
    each = max(map(_size, prompts)) + _SPECIAL_TOKENS
    return sum(map(_size, query.items)) + each * len(query.items)


def _size(item: Item) -> int:
    return len(item) if isinstance(item, tuple) or item.isascii() else len(item.encode())


def fingerprint_header(fingerprint: str) -> Header:
    """Return the header that says which model answered."""
    return b"x-embedding-fingerprint", fingerprint.encode()


def about(embeddings: Embeddings) -> tuple[Header, ...]:
    """Return the headers of an answer that say what its body may have no place for."""
    truncated = "none"
    if any(embeddings.truncated):
        truncated = ranges(list(compress(range(len(embeddings)), embeddings.truncated)))
    return (
        fingerprint_header(embeddings.fingerprint),
        (b"x-embedding-tokens", b"%d" % sum(embeddings.token_counts)),
        (b"x-embedding-truncated", truncated.encode()),
    )


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers in the way of `0-3,7`; very many as `first-last (count)`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    if 2 * len(spans) > _NUMBERS_IN_HEADERS:
        return f"{numbers[0]}-{numbers[-1]} ({len(numbers)})"
    parts = (f"{first}-{last}" if last > first else str(first) for first, last in spans)
    return ",".join(parts)


def raw_reply(query: Query, embeddings: Embeddings) -> Reply:
    """Return the rows as bytes, one after the other, in the first format asked for."""
    dtype = query.dtypes[0]
    rows = quantized(embeddings.vectors, dtype)
    headers = [
        (b"content-type", RAW),
        (b"x-embedding-shape", b"%d,%d" % rows.shape),
        (b"x-embedding-dtype", dtype.encode()),
        (b"x-embedding-usage", orjson.dumps(usage(embeddings))),
        *about(embeddings),
    ]
    if len(embeddings) <= _NUMBERS_IN_HEADERS:
        counts = ",".join(map(str, embeddings.token_counts))
        headers.append((b"x-embedding-token-counts", counts.encode()))
    return Reply(rows.tobytes(), 200, tuple(headers))
