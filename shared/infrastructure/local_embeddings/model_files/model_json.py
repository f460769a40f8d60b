"""Read the JSON files of a model, which may hold anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from shared.infrastructure.local_embeddings.errors import UnsupportedModelError

Json = dict[str, Any]


def read_json(path: Path, default: Mapping[str, Any] | None = None) -> Json:
    """Return the object in a file, or `default` if there is no such file.

    Raises:
        UnsupportedModelError: The file is not there and there is no default, or it holds no object.
    """
    content = _read(path, default)
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path} holds no JSON object")
    return cast("Json", content)


def read_json_list(path: Path) -> list[Json]:
    """Return the objects in a file that holds a list of them; none if there is no such file.

    Raises:
        UnsupportedModelError: The file holds something else.
    """
    content = _read(path, [])
    if isinstance(content, list):
        entries = cast("list[object]", content)
        if all(isinstance(entry, dict) for entry in entries):
            return cast("list[Json]", entries)
    raise UnsupportedModelError(f"{path} holds no list of JSON objects")


def _read(path: Path, default: object) -> object:
    if default is not None and not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise UnsupportedModelError(f"cannot read {path}: {exc}") from exc
