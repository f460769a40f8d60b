"""The OpenAPI document, made of the same table that requests are routed by."""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from services.embedding.process.schemas import SCHEMAS
from shared.infrastructure import __version__

if TYPE_CHECKING:
    from shared.infrastructure.server import Route

Json = dict[str, Any]

_RAW = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_RETRY_AFTER = {
    "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"},
    "Retry-After-Ms": {"schema": {"type": "integer"}, "description": "Milliseconds"},
}
_ABOUT = {
    "x-embedding-fingerprint": {
        "schema": {"type": "string"},
        "description": "Names the vector space: compare only vectors that have the same",
    },
    "x-embedding-tokens": {"schema": {"type": "integer"}},
    "x-embedding-truncated": {
        "schema": {"type": "string"},
        "description": "Positions of the items that were cut, such as 0-3,7; or none",
    },
}
_TEXT_PATHS = {"/metrics"}
_RAW_SCHEMAS = {"Embeddings", "Vectors", "EmbeddingsByType"}
_ABOUT_SCHEMAS = {*_RAW_SCHEMAS, "Scores"}


def document(routes: Mapping[str, Route]) -> Json:
    """Return the OpenAPI 3.1 document of these routes."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Embedding service",
            "version": __version__,
            "description": "Texts to vectors, in the shapes of OpenAI, TEI and Cohere.",
        },
        "paths": {path: {r.method.lower(): _operation(path, r)} for path, r in routes.items()},
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, route: Route) -> Json:
    operation: Json = {
        "summary": route.summary,
        "operationId": path.strip("/").replace("/", "_").replace(".", "_"),
        "responses": {str(status): _response(path, route, status) for status in route.statuses},
    }
    if route.needs_key:
        operation["security"] = [{"key": []}]
    if route.method == "POST":
        schema = _ref(f"{route.response}Request")
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _response(path: str, route: Route, status: int) -> Json:
    response: Json = {"description": http.HTTPStatus(status).phrase}
    if status in {429, 503}:
        response["headers"] = _RETRY_AFTER
    if status != 200:
        error = {"oneOf": [_ref(route.error_schema), _ref("Status")]}
        schema = error if route.response == "Status" else _ref(route.error_schema)
        return {**response, "content": {"application/json": {"schema": schema}}}
    if path in _TEXT_PATHS:
        return {**response, "content": {"text/plain": {"schema": {"type": "string"}}}}
    content: Json = {"application/json": {"schema": _ref(route.response)}}
    if route.response in _RAW_SCHEMAS:
        content.update(_RAW)
    if route.response in _ABOUT_SCHEMAS:
        response["headers"] = _ABOUT
    return {**response, "content": content}


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}
