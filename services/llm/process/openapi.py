"""The OpenAPI document, made of the same table that requests are routed by."""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any

from shared.infrastructure import __version__
from shared.infrastructure.server import Route

Json = dict[str, Any]

_OBJECT: Json = {"type": "object", "additionalProperties": True}
_TEXT: Json = {"type": ["string", "null"]}
_FORWARDED = {
    "Chat": ["messages"],
    "Completion": ["prompt"],
    "Embeddings": ["input"],
    "Response": ["input"],
    "Message": ["messages", "max_tokens"],
}
_SCHEMAS: Json = {
    "Any": {},
    "Status": {"type": "object", "properties": {"status": {"type": "string"}}},
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": _TEXT,
                    "code": _TEXT,
                },
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
    "Models": {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _OBJECT}},
    },
    "Hosts": {"type": "object", "properties": {"hosts": _OBJECT}, "required": ["hosts"]},
    "Host": {
        "type": "object",
        "required": ["name", "host"],
        "properties": {
            "name": {"type": "string"},
            "host": _OBJECT,
            "drained": {"type": "boolean"},
        },
    },
    "HostRequest": {
        "type": "object",
        "properties": {
            "timeout": {"type": "number", "exclusiveMinimum": 0},
            "weight": {"type": "number", "exclusiveMinimum": 0},
        },
    },
    **dict.fromkeys(_FORWARDED, _OBJECT),
    **{
        f"{name}Request": {**_OBJECT, "required": required} for name, required in _FORWARDED.items()
    },
}
_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
_RETRY_AFTER = {
    "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"},
    "Retry-After-Ms": {"schema": {"type": "integer"}, "description": "Milliseconds"},
}
_NAMED = {"x-request-id": {"schema": {"type": "string"}}}
_ABOUT = {
    **_NAMED,
    "x-llm-host": {"schema": {"type": "string"}, "description": "Name of the host that answered"},
    "x-llm-attempts": {"schema": {"type": "integer"}, "description": "Requests sent to hosts"},
}


def document(routes: Mapping[str, Route]) -> Json:
    """Return the OpenAPI 3.1 document of these routes."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LLM service",
            "version": __version__,
            "description": "Several LLM hosts as one, in the shapes of OpenAI and Anthropic.",
        },
        "paths": {path: {r.method.lower(): _operation(path, r)} for path, r in routes.items()},
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(path: str, route: Route) -> Json:
    name = path.strip("/").replace("/", "_").replace(".", "_").replace("{", "").replace("}", "")
    operation: Json = {
        "summary": route.summary,
        "operationId": name,
        "responses": {str(status): _response(path, route, status) for status in route.statuses},
    }
    if "{name}" in path:
        operation["parameters"] = [
            {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    if route.needs_key:
        operation["security"] = [{"key": []}, {"header": []}]
    if route.response in _FORWARDED:
        content = {"application/json": {"schema": _ref(route.error_schema)}}
        told = {"description": "Any other error of a host, as it is", "headers": _ABOUT}
        operation["responses"]["default"] = {**told, "content": content}
    if route.method == "POST":
        operation["requestBody"] = {
            "required": route.response in _FORWARDED,
            "content": {"application/json": {"schema": _ref(f"{route.response}Request")}},
        }
    return operation


def _response(path: str, route: Route, status: int) -> Json:
    response: Json = {"description": _PHRASES.get(status, "Overloaded"), "headers": _NAMED}
    if status in {429, 503}:
        response["headers"] = {**_NAMED, **_RETRY_AFTER}
    if status != 200:
        error = {"oneOf": [_ref(route.error_schema), _ref("Status")]}
        schema = error if route.response == "Status" else _ref(route.error_schema)
        return {**response, "content": {"application/json": {"schema": schema}}}
    if path == "/metrics":
        return {**response, "content": {"text/plain": {"schema": {"type": "string"}}}}
    content: Json = {"application/json": {"schema": _ref(route.response)}}
    if route.response in _FORWARDED:
        response["headers"] = _ABOUT
        if route.response != "Embeddings":
            content["text/event-stream"] = {"schema": {"type": "string"}}
    return {**response, "content": content}


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}
