"""JSON Schemas of what is sent and answered, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from services.embedding.process.cohere import INPUT_KINDS, TYPES
from services.embedding.process.query import CACHE_USES, DTYPES, INPUT_TYPES, LANES, TRUNCATIONS

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_WHOLE: Json = {"type": "integer"}
_NUMBER: Json = {"type": "number"}
_FLAG: Json = {"type": "boolean"}
_ANY: Json = {}


def _names(names: Iterable[str]) -> Json:
    return {"enum": list(names)}


def _list(of: Json) -> Json:
    return {"type": "array", "items": of}


def _object(properties: Json, required: Iterable[str] = ()) -> Json:
    return {"type": "object", "properties": properties, "required": list(required)}


_TEXTS: Json = {"oneOf": [_TEXT, _list(_TEXT)]}
_ITEMS: Json = {"oneOf": [*_TEXTS["oneOf"], _list(_WHOLE), _list(_list(_WHOLE))]}
_VECTOR: Json = {"oneOf": [_list(_NUMBER), _TEXT]}
_DEADLINE: Json = {"deadline_ms": {"type": "number", "exclusiveMinimum": 0}}
_PROMPT: Json = {"prompt_name": _TEXT, "input_type": _names(INPUT_TYPES)}
_WORK: Json = {"priority": _names(LANES), "cache": _names(CACHE_USES), **_DEADLINE}
_HOW: Json = {"prompt_name": _TEXT, "normalize": _FLAG, **_WORK}
_TEI_TRUNCATION: Json = {
    "truncate": _FLAG,
    "truncation_direction": _names(["left", "right", "Left", "Right"]),
}
_USAGE: Json = _object(
    {"prompt_tokens": _WHOLE, "total_tokens": _WHOLE, "cached_tokens": _WHOLE},
    ["prompt_tokens", "total_tokens", "cached_tokens"],
)

SCHEMAS: Json = {
    "Any": _ANY,
    "Status": _object({"status": _TEXT}, ["status"]),
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
                ["message", "type", "param", "code"],
            )
        },
        ["error"],
    ),
    "TEIError": _object({"error": _TEXT, "error_type": _TEXT}, ["error", "error_type"]),
    "CohereError": _object(
        {"id": _TEXT, "message": _TEXT, "code": _TEXT}, ["id", "message", "code"]
    ),
    "EmbeddingsRequest": _object(
        {
            "input": _ITEMS,
            "model": _TEXT,
            "dimensions": _WHOLE,
            "encoding_format": _names(["float", "base64"]),
            "user": _TEXT,
            "input_type": _names(INPUT_TYPES),
            "truncate": _names(TRUNCATIONS),
            "embed_dtype": _names(DTYPES),
            **_HOW,
        },
        ["input"],
    ),
    "Embeddings": _object(
        {
            "object": {"const": "list"},
            "model": _TEXT,
            "fingerprint": _TEXT,
            "reach": {**_NUMBER, "description": "What 127 steps of int8 and uint8 stand for"},
            "usage": _USAGE,
            "data": _list(
                _object(
                    {
                        "object": {"const": "embedding"},
                        "index": _WHOLE,
                        "embedding": _VECTOR,
                        "token_count": _WHOLE,
                        "truncated": _FLAG,
                    },
                    ["object", "index", "embedding", "token_count", "truncated"],
                )
            ),
        },
        ["object", "model", "fingerprint", "usage", "data"],
    ),
    "VectorsRequest": _object(
        {
            "inputs": _ITEMS,
            "dimensions": _WHOLE,
            "input_type": _names(INPUT_TYPES),
            **_TEI_TRUNCATION,
            **_HOW,
        },
        ["inputs"],
    ),
    "Vectors": _list(_list(_NUMBER)),
    "EmbeddingsByTypeRequest": _object(
        {
            "texts": _list(_TEXT),
            "model": _TEXT,
            "input_type": _names(INPUT_KINDS),
            "output_dimension": _WHOLE,
            "embedding_types": _list(_names(TYPES)),
            "truncate": _names(TRUNCATIONS),
            **_HOW,
        },
        ["texts", "input_type"],
    ),
    "EmbeddingsByType": _object(
        {
            "id": _TEXT,
            "response_type": {"const": "embeddings_by_type"},
            "embeddings": _object({name: _list(_VECTOR) for name in TYPES}),
            "meta": _object(
                {
                    "api_version": _object({"version": _TEXT}),
                    "billed_units": _object({"input_tokens": _WHOLE}),
                    "cached_tokens": _WHOLE,
                    "fingerprint": _TEXT,
                    "token_counts": _list(_WHOLE),
                    "truncated": _list(_FLAG),
                }
            ),
        },
        ["id", "response_type", "embeddings", "meta"],
    ),
    "ScoresRequest": _object(
        {
            "inputs": _object(
                {"source_sentence": _TEXT, "sentences": _list(_TEXT)},
                ["source_sentence", "sentences"],
            ),
            "parameters": _object({**_PROMPT, **_WORK, **_TEI_TRUNCATION}),
            **_PROMPT,
            **_WORK,
            **_TEI_TRUNCATION,
        },
        ["inputs"],
    ),
    "Scores": _list(_NUMBER),
    "RanksRequest": _object(
        {
            "query": _TEXT,
            "texts": _list(_TEXT),
            "raw_scores": {"const": False},
            "return_text": _FLAG,
            "top_n": _WHOLE,
            **_DEADLINE,
        },
        ["query", "texts"],
    ),
    "Ranks": _list(_object({"index": _WHOLE, "score": _NUMBER, "text": _TEXT}, ["index", "score"])),
    "TokensRequest": _object(
        {
            "inputs": _TEXTS,
            "add_special_tokens": {"const": True},
            **_PROMPT,
            **_DEADLINE,
        },
        ["inputs"],
    ),
    "Tokens": _list(_list(_object({"id": _WHOLE}, ["id"]))),
    "Info": _object(
        {
            "model_id": _TEXT,
            "fingerprint": _TEXT,
            "dimensions": _WHOLE,
            "max_input_length": {"type": ["integer", "null"]},
            "max_client_batch_size": _WHOLE,
            "max_request_tokens": _WHOLE,
            "prompts": _list(_TEXT),
        },
        ["model_id", "fingerprint", "dimensions", "max_input_length"],
    ),
    "Models": _object(
        {
            "object": {"const": "list"},
            "data": _list(
                _object(
                    {
                        "id": _TEXT,
                        "object": {"const": "model"},
                        "created": _WHOLE,
                        "owned_by": _TEXT,
                        "fingerprint": {"type": ["string", "null"]},
                    },
                    ["id", "object", "created", "owned_by"],
                )
            ),
        },
        ["object", "data"],
    ),
}
