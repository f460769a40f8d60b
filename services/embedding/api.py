"""What clients send and get back: OpenAI's embeddings, and TEI's, read and written by hand.

Neither side goes through models: validation by hand is a few tests, and vectors are written from
their array without a Python float in between.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from services.embedding.service import Embeddings
from services.embedding.wire import HTTPError, Reply
from shared.infrastructure.resilience import MissingExtraError

try:
    import orjson
except ImportError as exc:
    raise MissingExtraError("the embedding process", "embedding") from exc

MAX_ITEMS = 2048
"""Texts in one request; OpenAI's own limit."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """A request for embeddings.

    Attributes:
        texts: At least one, at most `MAX_ITEMS`.
        dimensions: Numbers of each vector to keep; None is all.
        model: Name the client gave; None if it gave none.
        as_base64: Whether vectors are sent as little-endian float32 in base64.
    """

    texts: list[str]
    dimensions: int | None = None
    model: str | None = None
    as_base64: bool = False


def read_openai(body: bytes) -> EmbeddingsRequest:
    """Read the body of `POST /v1/embeddings`; unknown fields are ignored.

    Raises:
        HTTPError: It is malformed (400).
    """
    payload = _object(body)
    encoding = payload.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise HTTPError(400, "encoding_format must be 'float' or 'base64'", param="encoding_format")
    model = payload.get("model")
    if model is not None and not isinstance(model, str):
        raise HTTPError(400, "model must be a string", param="model")
    return EmbeddingsRequest(
        _texts(payload, "input"), _dimensions(payload), model, encoding == "base64"
    )


def read_tei(body: bytes) -> EmbeddingsRequest:
    """Read the body of TEI's `POST /embed`.

    Raises:
        HTTPError: It is malformed (400).
    """
    payload = _object(body)
    if payload.get("normalize", True) is not True:
        raise HTTPError(400, "vectors are always normalized here", param="normalize")
    return EmbeddingsRequest(_texts(payload, "inputs"), _dimensions(payload))


def openai_reply(request: EmbeddingsRequest, embeddings: Embeddings, model: str) -> Reply:
    """Return OpenAI's list of embeddings, with each text's token count and truncation."""
    vectors = embeddings.vectors
    cells: Sequence[Any] = list(vectors)
    if request.as_base64:
        cells = [base64.b64encode(row).decode() for row in vectors.astype("<f4", copy=False)]
    counts, cached = embeddings.token_counts, embeddings.cached
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": cell,
            "token_count": counts[index],
            "truncated": embeddings.truncated[index],
        }
        for index, cell in enumerate(cells)
    ]
    tokens = sum(counts)
    usage = {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "cached_tokens": sum(count for count, hit in zip(counts, cached, strict=True) if hit),
    }
    return json_reply({"object": "list", "data": data, "model": model, "usage": usage})


def tei_reply(embeddings: Embeddings) -> Reply:
    """Return TEI's bare list of vectors."""
    return json_reply(list(embeddings.vectors))


def openai_error(error: HTTPError) -> Reply:
    """Return an error in OpenAI's shape."""
    body = {
        "message": error.message,
        "type": error.kind,
        "param": error.param,
        "code": error.code,
    }
    return json_reply({"error": body}, error.status)


def tei_error(error: HTTPError) -> Reply:
    """Return an error in TEI's shape."""
    return json_reply(
        {"error": error.message, "error_type": error.code or error.kind}, error.status
    )


def json_reply(content: object, status: int = 200) -> Reply:
    """Return `content` as JSON; float32 arrays are written as they are."""
    return Reply(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status)


def _object(body: bytes) -> Json:
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise HTTPError(400, f"the body is no valid JSON: {exc}") from None
    if not isinstance(payload, dict):
        raise HTTPError(400, "the body must be a JSON object")
    return cast("Json", payload)


def _texts(payload: Json, field: str) -> list[str]:
    value = payload.get(field)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise HTTPError(400, f"{field} must be a string or a list of strings", param=field)
    items = cast("list[object]", value)
    if len(items) > MAX_ITEMS:
        raise HTTPError(
            400, f"{field} has {len(items)} items: send at most {MAX_ITEMS}", param=field
        )
    if isinstance(items[0], (int, list)):
        raise HTTPError(400, f"{field} as token ids is not supported: send texts", param=field)
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise HTTPError(400, f"{field}[{index}] must be a string", param=f"{field}[{index}]")
    return cast("list[str]", items)


def _dimensions(payload: Json) -> int | None:
    value = payload.get("dimensions")
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise HTTPError(400, "dimensions must be an integer", param="dimensions")
