"""The routes that send no vectors: similarity, reranking, tokens, and what the process is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from services.embedding.options import CacheUse, EmbedOptions
from services.embedding.process.big_json import SLICE
from services.embedding.process.embedding import about, bound_tokens, fingerprint_header
from services.embedding.process.fields import Fields, wrong
from services.embedding.process.problems import not_ready
from services.embedding.process.query import CACHE_USES, LANES, Query, read_prompt
from services.embedding.process.tei import read_truncation
from services.embedding.process.writing import dumps, token_rows
from services.embedding.service import ProductionEmbeddingService
from shared.infrastructure import __version__
from shared.infrastructure.server import JSON, Header, Reply, Request, json_reply

Json = dict[str, Any]


class PlainHandlers:
    """The handlers of these routes.

    Args:
        service: What is asked.
        names: What clients may call the model, in the order in which they are listed.
    """

    def __init__(self, service: ProductionEmbeddingService, names: Iterable[str]) -> None:
        self._service = service
        self._names = tuple(names)
        self._created = int(time.time())

    async def similarity(self, request: Request) -> Reply:
        """Answer the cosines between one text and others."""
        fields = await self._fields(request)
        inputs = fields.inner("inputs")
        source, sentences = inputs.required("source_sentence"), inputs.texts("sentences")
        parameters = fields.inner("parameters") if fields.has("parameters") else fields
        input_type, prompt_name = read_prompt(parameters)
        options = EmbedOptions(
            input_type=input_type,
            prompt_name=prompt_name,
            truncation=read_truncation(parameters),
            lane=parameters.choice("priority", LANES, None),
            timeout=parameters.timeout("deadline_ms"),
            cache=parameters.choice("cache", CACHE_USES, CacheUse.USE),
            tenant=request.tenant,
        )
        query = Query([source, *sentences], options)
        await bound_tokens(query, self._service)
        embeddings = await self._service.embed_batch(query.items, options)
        first, *others = embeddings.vectors
        cosines = np.clip(np.stack(others) @ first, -1.0, 1.0)
        return Reply(dumps(cosines), 200, (JSON, *about(embeddings)))

    async def rerank(self, request: Request) -> Reply:
        """Answer texts in the order in which they answer a query, best first."""
        fields = await self._fields(request)
        query, texts = fields.required("query"), fields.texts("texts")
        if fields.flag("raw_scores", False):
            raise wrong("raw_scores", "is not offered: scores are scaled as the model says")
        top_n, shown = fields.integer("top_n"), fields.flag("return_text", False)
        if top_n is not None and top_n < 1:
            raise wrong("top_n", "must be at least 1")
        timeout = fields.timeout("deadline_ms")
        ranked = await self._service.rerank(query, texts, top_n=top_n, timeout=timeout)
        answer: list[Json] = [
            {"index": index, "score": score, **({"text": texts[index]} if shown else {})}
            for index, score in ranked
        ]
        return Reply(dumps(answer), 200, (JSON, *self._reranker()))

    async def tokenize(self, request: Request) -> Reply:
        """Answer the token ids that the model reads of each text."""
        fields = await self._fields(request)
        if not fields.flag("add_special_tokens", True):
            raise wrong("add_special_tokens", "must be true: the model reads them, too")
        input_type, prompt_name = read_prompt(fields)
        options = EmbedOptions(
            input_type=input_type,
            prompt_name=prompt_name,
            timeout=fields.timeout("deadline_ms"),
            tenant=request.tenant,
        )
        query = Query(fields.texts("inputs"), options)
        await bound_tokens(query, self._service)
        rows = await self._service.tokenize(fields.texts("inputs"), options)
        fingerprint = fingerprint_header(self._service.facts.fingerprint)
        return Reply(await token_rows(rows), 200, (JSON, fingerprint))

    async def info(self, _request: Request) -> Reply:
        """Answer what model this is and what may be asked of it."""
        service, settings = self._service, self._service.settings
        if not service.is_started:
            raise not_ready()
        facts = service.facts
        return json_reply(
            {
                "model_id": service.model_name,
                "model_sha": facts.fingerprint,
                "model_dtype": settings.dtype,
                "model_type": {"embedding": {"pooling": facts.details.get("pooling")}},
                "max_input_length": facts.max_length,
                "max_batch_tokens": facts.max_tokens,
                "max_batch_requests": facts.max_rows,
                "max_client_batch_size": settings.max_items,
                "max_request_tokens": settings.max_request_tokens,
                "payload_limit": settings.max_body_bytes,
                "auto_truncate": True,
                "version": __version__,
                "fingerprint": facts.fingerprint,
                "dimensions": facts.dimension,
                "prompts": sorted(facts.prompts),
                "reranker": settings.reranker,
            }
        )

    async def models(self, _request: Request) -> Reply:
        """Answer every name a client may use."""
        fingerprint = self._service.facts.fingerprint if self._service.is_started else None
        data = [
            {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": "morgan-sdk",
                "fingerprint": fingerprint,
            }
            for name in self._names
        ]
        return json_reply({"object": "list", "data": data})

    def _reranker(self) -> tuple[Header, ...]:
        """Return the header that says which reranker ranked."""
        reranker = self._service.reranker
        fingerprint = reranker and reranker.snapshot().get("fingerprint")
        return (fingerprint_header(fingerprint),) if fingerprint else ()

    async def _fields(self, request: Request) -> Fields:
        if not self._service.is_started:
            raise not_ready()
        if len(request.body) <= SLICE:
            return Fields.parse(request.body, self._service.settings)
        return await asyncio.to_thread(Fields.parse, request.body, self._service.settings)
