"""The tensors of a checkpoint: where their bytes are, so that a graph can refer to them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.errors import UnsupportedModelError
from shared.infrastructure.local_embeddings.optional import require

Array = NDArray[Any]

# What the class that saved the weights put before the names: "bert.", "roberta.", nothing.
_PREFIX = re.compile(r"^.*?(?=(embeddings|embeddings_project|encoder|transformer)\.)")
_NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        path: The file.
        dtype: Number format as the file names it: `F32`, `F16` or `BF16`.
        shape: Its shape.
        offset: Its first byte in the file.
        size: How many bytes it has.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def is_aligned(self) -> bool:
        """Whether its numbers lie where a processor expects them."""
        return not self.offset % _NUMPY[self.dtype].itemsize

    def read(self) -> Array:
        """Return it as float32."""
        dtype = _NUMPY[self.dtype]
        count = self.size // dtype.itemsize
        data = np.fromfile(self.path, dtype, count=count, offset=self.offset).reshape(self.shape)
        if self.dtype == "BF16":  # the upper half of a float32
            data = np.left_shift(data, 16, dtype=np.uint32).view(np.float32)
        return np.asarray(data, np.float32)


class Checkpoint:
    """The float tensors of some safetensors files by name, without the prefix of their class.

    Raises:
        UnsupportedModelError: A file is no safetensors file.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._tensors: dict[str, StoredTensor] = {}
        for path in paths:
            self._tensors |= _read_header(path.resolve())

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> StoredTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise UnsupportedModelError(f"the weights have no tensor {name!r}") from None


def _read_header(path: Path) -> dict[str, StoredTensor]:
    safetensors = require("safetensors", extra="onnx")
    try:
        with safetensors.safe_open(path, framework="np"):
            pass  # it has checked that the header describes exactly the bytes that follow it
    except safetensors.SafetensorError as exc:
        raise UnsupportedModelError(f"{path} is no valid safetensors file: {exc}") from exc
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    tensors: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in _NUMPY:
            continue
        start, end = entry["data_offsets"]
        tensors[_PREFIX.sub("", name, count=1)] = StoredTensor(
            path, entry["dtype"], tuple(entry["shape"]), 8 + length + start, end - start
        )
    return tensors
