"""Cohere's `/v2/embed`, and the shape of its errors."""

from __future__ import annotations

import uuid
from collections.abc import Container
from dataclasses import replace
from typing import Any

from services.embedding.process.fields import Fields, wrong
from services.embedding.process.openai import usage
from services.embedding.process.quantize import Dtype, quantized
from services.embedding.process.query import INPUT_TYPES, Query, read_options
from services.embedding.process.writing import dumps, json_rows
from services.embedding.results import Embeddings
from shared.infrastructure.server import HTTPError

# What is no search is asked for by a prompt of that name, where the model has one.
INPUT_KINDS = {
    **{name: name for name in INPUT_TYPES},
    "classification": "classification",
    "clustering": "clustering",
}
TYPES = {
    "float": Dtype.FLOAT32,
    "int8": Dtype.INT8,
    "uint8": Dtype.UINT8,
    "binary": Dtype.BINARY,
    "ubinary": Dtype.UBINARY,
    "base64": Dtype.FLOAT32,
}
_NAMES = {name: name for name in TYPES}


class CohereDialect:
    """One request may ask for several number formats at once."""

    @staticmethod
    def read(fields: Fields, prompts: Container[str], tenant: str) -> Query:
        kind = fields.choice("input_type", INPUT_KINDS, None)
        if kind is None:
            raise wrong("input_type", f"must be one of {', '.join(INPUT_KINDS)}")
        if kind in INPUT_TYPES:
            options = read_options(fields, dimensions="output_dimension", tenant=tenant)
        else:
            rest = fields.without("input_type")
            options = read_options(rest, dimensions="output_dimension", tenant=tenant)
            if options.prompt_name is None and kind in prompts:
                options = replace(options, prompt_name=kind)
        names = fields.choices("embedding_types", _NAMES, ("float",))
        return Query(
            fields.texts("texts"),
            options,
            fields.string("model"),
            tuple(TYPES[name] for name in names),
            names=names,
        )

    @staticmethod
    async def write(query: Query, embeddings: Embeddings, model: str) -> bytes:
        parts: list[bytes] = []
        for name, dtype in zip(query.names, query.dtypes, strict=True):
            rows = quantized(embeddings.vectors, dtype)
            parts.append(
                b'"%b":%b' % (name.encode(), await json_rows(rows, as_base64=name == "base64"))
            )
        tokens = usage(embeddings)
        rest = {
            "id": str(uuid.uuid4()),
            "response_type": "embeddings_by_type",
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {"input_tokens": tokens["prompt_tokens"]},
                "cached_tokens": tokens["cached_tokens"],
                "fingerprint": embeddings.fingerprint,
                "token_counts": embeddings.token_counts,
                "truncated": embeddings.truncated,
            },
        }
        return b'{"embeddings":{%b},%b' % (b",".join(parts), dumps(rest)[1:])

    @staticmethod
    def error(error: HTTPError) -> dict[str, Any]:
        return {"id": str(uuid.uuid4()), "message": error.message, "code": error.code or error.kind}
