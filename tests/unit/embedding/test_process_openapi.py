from collections.abc import Callable
from typing import Any

from process_client import POST, process


async def test_every_route_and_every_status_is_in_the_openapi_document() -> None:
    async with process() as running:
        document = (await running.get("/openapi.json")).json()
        for path, route in running.app.routes.items():
            operation = document["paths"][path][route.method.lower()]
            assert list(operation["responses"]) == [str(status) for status in route.statuses]
            assert (route.method == "POST") == ("requestBody" in operation)
            assert route.needs_key == ("security" in operation)
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == running.app.routes.keys()
    referenced = set(_references(document))
    assert referenced == document["components"]["schemas"].keys()


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"].rpartition("/")[2]] if "$ref" in node else []
        return own + [name for value in node.values() for name in _references(value)]
    if isinstance(node, list):
        return [name for value in node for name in _references(value)]
    return []


async def test_what_is_answered_fits_the_schema_of_the_openapi_document() -> None:
    async with process() as running:
        document = (await running.get("/openapi.json")).json()
        schemas = document["components"]["schemas"]
        for path, route in running.app.routes.items():
            if path == "/metrics":
                continue
            if route.method == "POST":
                reply = await running.post(POST[path], path)
                assert not list(_misfits(POST[path], schemas[f"{route.response}Request"]))
            else:
                reply = await running.get(path)
            assert reply.status_code == 200
            assert not list(_misfits(reply.json(), schemas[route.response]))
            wrong = await running.request("PUT", path)
            assert not list(_misfits(wrong.json(), schemas[route.error_schema]))


_KINDS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def _misfits(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """Return where a value is not what a schema, of the few words that ours use, says."""
    if "oneOf" in schema:
        fits = [each for each in schema["oneOf"] if not _misfits(value, each)]
        return [] if len(fits) == 1 else [where]
    if "enum" in schema or "const" in schema:
        return [] if value in schema.get("enum", [schema.get("const")]) else [where]
    kinds = schema.get("type", [])
    if kinds and not any(
        _KINDS[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds)
    ):
        return [where]
    found = [f"{where}.{name}" for name in schema.get("required", []) if name not in value]
    for name, inner in schema.get("properties", {}).items():
        if name in value:
            found += _misfits(value[name], inner, f"{where}.{name}")
    if "items" in schema:
        for index, item in enumerate(value):
            found += _misfits(item, schema["items"], f"{where}[{index}]")
    return found
