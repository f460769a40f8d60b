"""`/embed` of Text Embeddings Inference, and the shape of errors on its routes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.embedding.process.fields import Fields, wrong
from services.embedding.process.query import Query, read_options
from services.embedding.process.writing import json_rows
from services.embedding.results import Embeddings
from shared.infrastructure.local_embeddings import Truncation
from shared.infrastructure.server import HTTPError

_DIRECTIONS = {
    "left": Truncation.START,
    "Left": Truncation.START,
    "right": Truncation.END,
    "Right": Truncation.END,
}


class TEIDialect:
    """A text too long is cut unless `truncate` is false; its answer is a bare list of vectors."""

    @staticmethod
    def read(fields: Fields, prompts: object, tenant: str) -> Query:
        truncation = read_truncation(fields)
        options = read_options(fields.without("truncate"), dimensions="dimensions", tenant=tenant)
        return Query(fields.items("inputs"), replace(options, truncation=truncation))

    @staticmethod
    async def write(query: Query, embeddings: Embeddings, model: str) -> bytes:
        return await json_rows(embeddings.vectors)

    @staticmethod
    def error(error: HTTPError) -> dict[str, Any]:
        return {"error": error.message, "error_type": error.code or error.kind}


def read_truncation(fields: Fields) -> Truncation | None:
    """Return which end of a text is cut; None leaves it to the model.

    Raises:
        HTTPError: `truncate` or `truncation_direction` is wrong (400).
    """
    direction = fields.choice("truncation_direction", _DIRECTIONS, None)
    if not fields.flag("truncate", True):
        if direction is not None:
            raise wrong("truncation_direction", "needs truncate")
        return Truncation.NONE
    return direction
