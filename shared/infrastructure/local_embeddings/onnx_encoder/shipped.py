"""An ONNX graph that came with a model: written by others, so that it is looked at before it runs.

It may read no file outside of its directory, and run no operators but those of ONNX and of ONNX
Runtime itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from shared.infrastructure.local_embeddings.errors import UnsupportedModelError
from shared.infrastructure.local_embeddings.model_files.files import digest, file_digest
from shared.infrastructure.local_embeddings.onnx_encoder.graph import FUSED, Graph
from shared.infrastructure.local_embeddings.optional import require

_DOMAINS = {"", "ai.onnx", FUSED}
_HALF = {"FLOAT16": "float16", "BFLOAT16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class ShippedGraph:
    """A graph that may be run.

    Attributes:
        graph: The graph.
        dtype: Number format of the arithmetic.
        batch_invariant: Whether a text's vector is the same whatever runs beside it: not if
            activations are scaled by what is in the pass.
        digest: SHA-256 of the graph and of the files of its weights.
    """

    graph: Graph
    dtype: str
    batch_invariant: bool
    digest: str


def read_shipped(path: Path) -> ShippedGraph:
    """Read a graph without its weights.

    Raises:
        UnsupportedModelError: It is no ONNX file, refers to a file outside of its directory, or
            has operators of another library.
    """
    onnx = require("onnx", extra="onnx")
    protobuf = require("google.protobuf.message", extra="onnx")
    try:
        model = onnx.load(path, load_external_data=False)
    except protobuf.DecodeError as exc:
        raise UnsupportedModelError(f"{path} is no ONNX file: {exc}") from exc
    parts = list(_parts(model))
    for part in parts:
        if isinstance(part, onnx.NodeProto | onnx.OperatorSetIdProto | onnx.FunctionProto):
            _check_domain(path, part)
    tensors = [part for part in parts if isinstance(part, onnx.TensorProto)]
    external = [tensor for tensor in tensors if tensor.data_location == tensor.EXTERNAL]
    graph = _refer(path, model, external) if external else Graph(str(path), path.parent)
    operators = [part.op_type for part in parts if isinstance(part, onnx.NodeProto)]
    dynamic = any(operator.startswith("DynamicQuantize") for operator in operators)
    formats = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in tensors}
    half = next((name for kind, name in _HALF.items() if kind in formats), "float32")
    files = [path, *(graph.folder / name for name in sorted(graph.files))]
    return ShippedGraph(
        graph,
        dtype="int8" if dynamic else half,
        batch_invariant=not dynamic,
        digest=digest(*map(file_digest, files)) if external else file_digest(path),
    )


def _parts(message: Any) -> Iterator[Any]:
    """Yield a message and all messages in it: graphs in nodes, tensors in attributes."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if hasattr(value, "extend") else [value]:
                yield from _parts(item)


def _check_domain(path: Path, part: Any) -> None:
    if part.domain not in _DOMAINS:
        raise UnsupportedModelError(
            f"{path} has operators of {part.domain!r}: code that comes with a model is never run"
        )


def _refer(path: Path, model: Any, external: list[Any]) -> Graph:
    """Return the graph with its weights where they really lie, which may be behind links."""
    folder = path.resolve().parent
    for tensor in external:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = _beside(path, entry.value).relative_to(folder).as_posix()
    files = {
        entry.value
        for tensor in external
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return Graph(model.SerializeToString(), folder, frozenset(files))


def _beside(path: Path, location: str) -> Path:
    """Return the file that a graph refers to, free of links.

    A link out of the directory counts as outside, unless the graph itself is such a link and lies
    beside the file: so are models kept that were fetched from a hub.
    """
    relative = PureWindowsPath(location)  # knows both slashes, and drives
    if relative.anchor or ".." in relative.parts:
        raise _outside(path, location)
    file = path.parent.joinpath(*relative.parts).resolve()
    if not file.is_relative_to(path.resolve().parent):
        raise _outside(path, location)
    if not file.is_file():
        raise UnsupportedModelError(f"{path} has weights in {location!r}, which is not there")
    return file


def _outside(path: Path, location: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{path} refers to {location!r}, outside of its directory")
