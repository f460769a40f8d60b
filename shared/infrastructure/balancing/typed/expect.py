"""Expect an answer of a certain form, and say what is wrong with one that has another."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from pydantic import BaseModel, ValidationError

from shared.infrastructure.balancing.typed.schema import problem_of

Expected = Literal["json"] | Mapping[str, Any] | type[BaseModel]
"""Any JSON, JSON that keeps to a schema, or what a pydantic model can be made of."""

# Some models wrap JSON as if they were writing to a person.
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)


def reader_of(expected: Expected) -> Callable[[str], Any]:
    """Return what reads the text of an answer; it raises `ValueError` saying what is wrong."""
    if isinstance(expected, type):
        return lambda text: _model_in(text, expected)
    schema = expected if isinstance(expected, Mapping) else cast("Mapping[str, Any]", {})
    return lambda text: _json_in(text, schema)


def _model_in(text: str, model: type[BaseModel]) -> BaseModel:
    try:
        return model.model_validate_json(_bare(text))
    except ValidationError as exc:
        first, *others = exc.errors(include_url=False, include_context=False)
        place = ".".join(map(str, first["loc"])) or "the answer"
        more = f", and {len(others)} more" if others else ""
        raise ValueError(f"{place}: {first['msg']}{more}") from None


def _json_in(text: str, schema: Mapping[str, Any]) -> Any:
    try:
        value = json.loads(_bare(text))
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"it is no JSON: {exc}") from None
    problem = problem_of(value, schema)
    if problem is not None:
        raise ValueError(problem)
    return value


def _bare(text: str) -> str:
    fenced = _FENCED.fullmatch(text)
    return fenced[1] if fenced else text
