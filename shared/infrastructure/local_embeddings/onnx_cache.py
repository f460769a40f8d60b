"""Build the ONNX graph of a model once, and keep it."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from shared.infrastructure.local_embeddings.config import DEFAULT_CACHE_DIR, Pooling
from shared.infrastructure.local_embeddings.files import ModelFiles, digest, file_digest
from shared.infrastructure.local_embeddings.onnx_graph import BUILDER_VERSION, build_graph


def cached_graph(files: ModelFiles, pooling: Pooling, cache_dir: Path | None = None) -> Path:
    """Return the path of the model's graph, built if the cache has no intact copy.

    The name of a copy is a hash of all that went into it, so that it is never out of date.
    Processes may race to build it: each puts its whole, identical file in place at once.
    """
    key = digest(
        BUILDER_VERSION, files.weights_digest, json.dumps(files.config, sort_keys=True), pooling
    )
    path = (cache_dir or DEFAULT_CACHE_DIR).expanduser() / "onnx" / f"{key}.onnx"
    checksum = path.with_suffix(".sha256")
    if path.is_file() and checksum.is_file() and checksum.read_text() == file_digest(path):
        return path
    export(files, pooling, path)
    _replace(checksum, file_digest(path).encode())
    return path


def export(files: ModelFiles, pooling: Pooling, path: Path) -> None:
    """Write the model's graph to `path`; a reader sees the whole file or none.

    Raises:
        UnsupportedModelError: The architecture has no graph here.
    """
    _replace(path, build_graph(files, pooling).SerializeToString(deterministic=True))


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
