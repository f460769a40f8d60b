"""Check a value against the part of JSON Schema that hosts take for structured answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

Schema = Mapping[str, Any]

_MAX_DEPTH = 100


def problem_of(value: Any, schema: Schema) -> str | None:
    """Return what is wrong with a value, and where; None if nothing is.

    Understood are `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`,
    `items`, `anyOf`, `oneOf`, `allOf`, `$ref` within the schema, and the bounds of numbers, texts
    and arrays. Other keywords ask for nothing.
    """
    return next(_Checker(schema).problems(value, schema, "the answer", 0), None)


class _Checker:
    def __init__(self, root: Schema) -> None:
        self._root = root

    def problems(self, value: Any, schema: Any, place: str, depth: int) -> Iterator[str]:
        if schema is False or depth > _MAX_DEPTH:
            yield f"{place} is not wanted, or is nested too deeply"
        if not isinstance(schema, Mapping):
            return
        schema = cast("Schema", schema)
        if "$ref" in schema:
            yield from self.problems(value, self._resolved(schema["$ref"]), place, depth + 1)
        yield from _own_problems(value, schema, place)
        if isinstance(value, dict):
            yield from self._in_object(cast("dict[str, Any]", value), schema, place, depth)
        if isinstance(value, list) and "items" in schema:
            for at, item in enumerate(cast("list[object]", value)):
                yield from self.problems(item, schema["items"], f"{place}[{at}]", depth + 1)
        for part in schema.get("allOf", ()):
            yield from self.problems(value, part, place, depth + 1)
        for word in ("anyOf", "oneOf"):
            fits = [self._fits(value, part, depth + 1) for part in schema.get(word, ())]
            if fits and not (any(fits) if word == "anyOf" else sum(fits) == 1):
                yield f"{place} fits {sum(fits)} of the {len(fits)} forms it may have"

    def _in_object(
        self, value: dict[str, Any], schema: Schema, place: str, depth: int
    ) -> Iterator[str]:
        known: Schema = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{place} has no {name!r}"
        for name, part in value.items():
            below = known.get(name, schema.get("additionalProperties", True))
            if below is False:
                yield f"{place} has {name!r}, which is not wanted"
            else:
                yield from self.problems(part, below, f"{place}.{name}", depth + 1)

    def _fits(self, value: Any, schema: Any, depth: int) -> bool:
        return next(self.problems(value, schema, "", depth), None) is None

    def _resolved(self, reference: str) -> Any:
        found: Any = self._root
        for name in reference.removeprefix("#").strip("/").split("/"):
            if name:
                found = found.get(name, {})
        return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": _is_number,
    "integer": lambda value: _is_number(value) and value == int(value),
}


def _own_problems(value: Any, schema: Schema, place: str) -> Iterator[str]:
    types = schema.get("type", ())
    names = [types] if isinstance(types, str) else list(types)
    if names and not any(_TYPES[name](value) for name in names if name in _TYPES):
        yield f"{place} is no {' or '.join(names)}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place} is none of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{place} is not {schema['const']!r}"
    if isinstance(value, str):
        yield from _out_of_bounds(len(value), schema, "Length", f"the length of {place}")
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{place} does not match {schema['pattern']!r}"
    elif isinstance(value, list):
        count = len(cast("list[object]", value))
        yield from _out_of_bounds(count, schema, "Items", f"the length of {place}")
    elif _is_number(value):
        yield from _out_of_bounds(value, schema, "imum", place)
        if value <= schema.get("exclusiveMinimum", value - 1):
            yield f"{place} is not above {schema['exclusiveMinimum']}"
        if value >= schema.get("exclusiveMaximum", value + 1):
            yield f"{place} is not below {schema['exclusiveMaximum']}"


def _out_of_bounds(value: float, schema: Schema, what: str, place: str) -> Iterator[str]:
    if value < schema.get(f"min{what}", value):
        yield f"{place} is below {schema[f'min{what}']}"
    if value > schema.get(f"max{what}", value):
        yield f"{place} is above {schema[f'max{what}']}"
