"""Read safetensors: eight bytes of length, a JSON header, then the tensors' own bytes.

The file is mapped, not read: its pages belong to all processes of the machine that map it, and a
weight that is never used takes no memory.
"""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any, cast

import torch

_LARGEST_HEADER = 100_000_000
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class CorruptWeightsError(ValueError):
    """A file is no safetensors file, or not all of one."""


class SafetensorsFile:
    """A mapped file.

    Args:
        path: The file.

    Attributes:
        tensors: Its tensors by name. They share the file's pages as long as nobody writes to them;
            what is written stays in this process.

    Raises:
        CorruptWeightsError: The header does not describe exactly the bytes that follow it.
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 8:
                raise CorruptWeightsError(f"{path} is too short for a safetensors file")
            # A private mapping is writable without touching the file: torch warns of memory that
            # is not.
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        start = 8 + int.from_bytes(self._data[:8], "little")
        if start > min(size, _LARGEST_HEADER):
            raise CorruptWeightsError(f"{path} of {size} bytes says that {start} are its header")
        try:
            header = json.loads(self._data[8:start], object_pairs_hook=_without_repeats)
            self.tensors = _tensors(header, self._data, start)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            raise CorruptWeightsError(f"{path} is no valid safetensors file: {exc!r}") from exc

    def forget_pages(self) -> None:
        """Give the memory of all pages read so far back; what is needed again is read again."""
        if hasattr(self._data, "madvise"):
            self._data.madvise(mmap.MADV_DONTNEED)


def _tensors(header: dict[str, Any], data: mmap.mmap, start: int) -> dict[str, torch.Tensor]:
    header.pop("__metadata__", None)
    tensors: dict[str, torch.Tensor] = {}
    end = 0
    # In the order of their bytes, so that gaps and overlaps show.
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begins, ends = entry["data_offsets"]
        dtype, shape = _DTYPES[entry["dtype"]], cast("list[int]", entry["shape"])
        if begins != end or min(shape, default=0) < 0:
            raise ValueError(f"tensor {name!r} begins at {begins}, not at {end}")
        if ends - begins != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {name!r} of shape {shape} has {ends - begins} bytes")
        end = ends
        if start + end > len(data):
            break
        tensors[name] = _view(data, dtype, start + begins, ends - begins).view(shape)
    if start + end != len(data):
        raise ValueError(f"the tensors end at byte {start + end}, and the file at {len(data)}")
    return tensors


def _view(data: mmap.mmap, dtype: torch.dtype, offset: int, size: int) -> torch.Tensor:
    if not size:
        return torch.empty(0, dtype=dtype)
    count = size // dtype.itemsize
    if offset % dtype.itemsize:  # a header that is not a multiple of 8 bytes long: legal, and rare
        return torch.frombuffer(bytearray(data[offset : offset + size]), dtype=dtype, count=count)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=offset)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name is given twice")
    return entries
