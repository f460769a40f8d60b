"""The part of JSON Schema that hosts take for structured answers."""

from typing import Any

import pytest

from shared.infrastructure.balancing.typed.schema import problem_of

TREE = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
    "$ref": "#/$defs/node",
}
EITHER = {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1}]}
ONE = {"oneOf": [{"multipleOf": 2}, {"type": "integer"}]}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, [1]),
        ({"type": "object"}, {}),
        ({"type": ["string", "null"]}, None),
        ({"type": "integer"}, 2.0),
        ({"type": "number", "exclusiveMinimum": 0}, 0.1),
        ({"enum": ["a", 1]}, 1),
        ({"const": None}, None),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 2}, ["a", "b"]),
        ({"properties": {"a": {"type": "string"}}}, {"b": 1}),
        ({"additionalProperties": {"type": "integer"}}, {"b": 1}),
        ({"type": "string", "pattern": "^[A-Z]{2}$"}, "AT"),
        ({"allOf": [{"minimum": 1}, {"maximum": 3}]}, 2),
        (EITHER, 1),
        (TREE, {"next": {"next": {}}}),
        ({"format": "date"}, "unknown words ask for nothing"),
    ],
)
def test_what_fits_has_no_problem(schema: Any, value: Any) -> None:
    assert problem_of(value, schema) is None


@pytest.mark.parametrize(
    ("schema", "value", "problem"),
    [
        ({"type": "object"}, [], "the answer is no object"),
        ({"type": ["string", "null"]}, 1, "no string or null"),
        ({"type": "integer"}, 1.5, "no integer"),
        ({"type": "integer"}, True, "no integer"),
        ({"type": "number"}, "1", "no number"),
        ({"type": "boolean"}, 1, "no boolean"),
        ({"minimum": 1}, 0, "below 1"),
        ({"maximum": 1}, 2, "above 1"),
        ({"exclusiveMinimum": 1}, 1, "not above 1"),
        ({"exclusiveMaximum": 1}, 1, "not below 1"),
        ({"minLength": 1}, "", "the length of the answer is below 1"),
        ({"maxItems": 1}, [1, 2], "the length of the answer is above 1"),
        ({"pattern": "^a"}, "b", "does not match"),
        ({"enum": ["a"]}, "b", "none of"),
        ({"const": 1}, 2, "is not 1"),
        ({"required": ["a"]}, {}, "has no 'a'"),
        ({"additionalProperties": False}, {"a": 1}, "'a', which is not wanted"),
        ({"items": {"type": "string"}}, ["a", 1], r"the answer\[1\] is no string"),
        ({"properties": {"a": {"minimum": 1}}}, {"a": 0}, r"the answer\.a is below 1"),
        ({"allOf": [{"minimum": 1}, {"maximum": 3}]}, 4, "above 3"),
        (EITHER, 0, "fits 0 of the 2 forms"),
        (ONE, 4, "fits 2 of the 2 forms"),
        (TREE, {"next": {"next": 1}}, r"the answer\.next\.next is no object"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(schema: Any, value: Any, problem: str) -> None:
    found = problem_of(value, schema)
    assert found is not None
    with pytest.raises(ValueError, match=problem):
        raise ValueError(found)


def test_a_schema_that_only_refers_to_itself_ends() -> None:
    assert problem_of({}, {"$ref": "#"}) is not None
