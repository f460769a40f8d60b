"""OpenAI's `/v1/embeddings`."""

from __future__ import annotations

from itertools import compress
from typing import Any

from services.embedding.process.fields import Fields
from services.embedding.process.quantize import HAS_SCALE, Dtype, quantized, reach
from services.embedding.process.query import DTYPES, Query, plain_options, read_options
from services.embedding.process.writing import base64_rows, dumps, sliced
from services.embedding.results import Embeddings

_PLAIN = frozenset({"input", "model", "encoding_format", "user"})
_ENCODINGS = {"float": False, "base64": True}


class OpenAIDialect:
    """Beside OpenAI's own fields it takes ours; unknown ones are ignored."""

    @staticmethod
    def read(fields: Fields, prompts: object, tenant: str) -> Query:
        if fields.only(_PLAIN):
            options = plain_options(fields.timeout("deadline_ms"), tenant)
            dtype = Dtype.FLOAT32
        else:
            options = read_options(fields, dimensions="dimensions", tenant=tenant)
            dtype = fields.choice("embed_dtype", DTYPES, Dtype.FLOAT32)
        return Query(
            fields.items("input"),
            options,
            fields.string("model"),
            (dtype,),
            fields.choice("encoding_format", _ENCODINGS, False),
        )

    @staticmethod
    async def write(query: Query, embeddings: Embeddings, model: str) -> bytes:
        dtype = query.dtypes[0]
        rows = quantized(embeddings.vectors, dtype)
        counts, truncated = embeddings.token_counts, embeddings.truncated

        def write(start: int, end: int) -> bytes:
            part: Any = rows[start:end]
            return dumps(
                [
                    {
                        "object": "embedding",
                        "index": index,
                        "embedding": cell,
                        "token_count": counts[index],
                        "truncated": truncated[index],
                    }
                    for index, cell in enumerate(
                        base64_rows(part) if query.as_base64 else part, start
                    )
                ]
            )

        rest: dict[str, Any] = {
            "model": model,
            "usage": usage(embeddings),
            "fingerprint": embeddings.fingerprint,
        }
        if dtype in HAS_SCALE:
            rest["reach"] = reach(embeddings.vectors.shape[1])
        data = await sliced(rows, write)
        return b'{"object":"list","data":%b,%b' % (data, dumps(rest)[1:])


def usage(embeddings: Embeddings) -> dict[str, int]:
    """Return the tokens of a call, and those of them that were not computed anew."""
    tokens = sum(embeddings.token_counts)
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "cached_tokens": sum(compress(embeddings.token_counts, embeddings.cached)),
    }
