"""Put an ONNX graph together."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.infrastructure.local_embeddings.onnx_encoder.checkpoint import (
    Array,
    Checkpoint,
    StoredTensor,
)
from shared.infrastructure.local_embeddings.optional import require

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto, ValueInfoProto

FUSED = "com.microsoft"
"""Domain of the operators that are ONNX Runtime's own."""

_OPSETS = {"": 17, FUSED: 1}
_IR_VERSION = 8
_STORED = {"F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16"}


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph, and the files that its weights are in.

    Attributes:
        source: The graph itself, or the path of a file that is complete without others.
        folder: A directory with all files of weights in or below it.
        files: The files, each as the path, relative to `folder`, that the graph has for it.
    """

    source: bytes | str
    folder: Path
    files: frozenset[str] = frozenset()

    def place(self, path: Path) -> None:
        """Put the graph at `path`, and its weights beside it, for who can open only files.

        Links are hard ones, since ONNX Runtime follows none out of the directory; where there
        can be none, a file is copied.
        """
        if isinstance(self.source, str):
            path.symlink_to(Path(self.source).resolve())
        else:
            path.write_bytes(self.source)
        for name in self.files:
            copy = path.parent / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                copy.hardlink_to(self.folder / name)
            except OSError:
                shutil.copyfile(self.folder / name, copy)


class GraphBuilder:
    """A graph in the making; a method that adds something returns the name of its output.

    Args:
        checkpoint: Weights that the graph may refer to.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._onnx = require("onnx", extra="onnx")
        self.checkpoint = checkpoint
        self._nodes: list[NodeProto] = []
        self._tensors: dict[str, TensorProto] = {}
        self._stored: dict[str, StoredTensor] = {}
        self._inputs: list[ValueInfoProto] = []

    def input(self, name: str, kind: str, shape: list[str | int]) -> str:
        """Declare an input of the graph."""
        self._inputs.append(self._value(name, kind, shape))
        return name

    def op(
        self, kind: str, *inputs: str, domain: str = "", output: str = "", **options: Any
    ) -> str:
        """Add a node with one output; an input that is left out is the empty string."""
        output = output or f"{kind}_{len(self._nodes)}"
        node = self._onnx.helper.make_node(kind, inputs, [output], domain=domain, **options)
        self._nodes.append(node)
        return output

    def cast(self, x: str, kind: str) -> str:
        """Add a cast to a type that ONNX knows by the name `kind`."""
        return self.op("Cast", x, to=getattr(self._onnx.TensorProto, kind))

    def constant(self, array: Any, dtype: Any = None) -> str:
        """Add a small tensor that is part of the graph itself."""
        name = f"constant_{len(self._tensors)}"
        value = np.asarray(array, dtype=dtype, order="C")
        self._tensors[name] = self._onnx.numpy_helper.from_array(value, name)
        return name

    def filled(self, shape: str, value: Array) -> str:
        """Add a tensor of a shape known only at run time, full of the one number in `value`."""
        tensor = self._onnx.numpy_helper.from_array(value)
        return self.op("ConstantOfShape", shape, value=tensor)

    def weight(self, name: str) -> str:
        """Refer to a tensor of the checkpoint; half precision becomes float32 as it is loaded."""
        stored = self.checkpoint[name]
        if not stored.is_aligned:
            return self.constant(stored.read())
        if name not in self._stored:
            self._stored[name] = stored
        return name if stored.dtype == "F32" else self.cast(name, "FLOAT")

    def finish(self, output: str, shape: list[str | int]) -> Graph:
        """Return the graph; `output`, float32, is its only one and becomes `embeddings`."""
        self.op("Identity", output, output="embeddings")
        helper = self._onnx.helper
        folder = _common_folder([stored.path for stored in self._stored.values()])
        external = [self._external(name, stored, folder) for name, stored in self._stored.items()]
        model = helper.make_model(
            helper.make_graph(
                self._nodes,
                "encoder",
                self._inputs,
                [self._value("embeddings", "FLOAT", shape)],
                [*self._tensors.values(), *external],
            ),
            opset_imports=[helper.make_opsetid(*opset) for opset in _OPSETS.items()],
            ir_version=_IR_VERSION,
            producer_name="morgan-sdk",
        )
        files = {_location(stored, folder) for stored in self._stored.values()}
        return Graph(model.SerializeToString(), folder, frozenset(files))

    def _value(self, name: str, kind: str, shape: list[Any]) -> ValueInfoProto:
        number_format = getattr(self._onnx.TensorProto, kind)
        value: ValueInfoProto = self._onnx.helper.make_tensor_value_info(name, number_format, shape)
        return value

    def _external(self, name: str, stored: StoredTensor, folder: Path) -> TensorProto:
        proto = self._onnx.TensorProto
        tensor: TensorProto = proto(
            name=name,
            data_type=getattr(proto, _STORED[stored.dtype]),
            dims=stored.shape,
            data_location=proto.EXTERNAL,
        )
        place = {
            "location": _location(stored, folder),
            "offset": stored.offset,
            "length": stored.size,
        }
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def _common_folder(paths: list[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()


def _location(stored: StoredTensor, folder: Path) -> str:
    return stored.path.relative_to(folder).as_posix()
