"""Number formats of the vectors in a reply."""

from __future__ import annotations

import enum
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STEPS = 127
_SPREAD = 16.0


class Dtype(enum.StrEnum):
    """How a number of a vector is sent; all of more than one byte are little-endian."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    """`round(127 x / reach(dimensions))`."""
    UINT8 = "uint8"
    """The int8 number and 128."""
    BINARY = "binary"
    """The ubinary byte less 128."""
    UBINARY = "ubinary"
    """Eight signs a byte, the first one in its highest bit, 1 for above 0."""


HAS_SCALE = frozenset({Dtype.INT8, Dtype.UINT8})


def reach(dimensions: int) -> float:
    """Return the number that int8's 127 stands for; vectors of one width share it.

    The numbers of a vector of length 1 are about 1/sqrt(dimensions): one scale for every width
    would leave nothing of those of long vectors. Sixteen times that holds the outliers of real
    models, and costs less than 0.001 of cosine.
    """
    return min(1.0, _SPREAD / math.sqrt(dimensions))


def quantized(vectors: NDArray[np.float32], dtype: Dtype) -> NDArray[Any]:
    """Return vectors (n, dimensions) of length 1 in another format, little-endian and contiguous.

    Args:
        vectors: float32.
        dtype: The format; binary ones give (n, ceil(dimensions / 8)) bytes.
    """
    if dtype is Dtype.FLOAT32:
        rows: NDArray[np.float32] = np.ascontiguousarray(vectors, "<f4")
        return rows
    if dtype is Dtype.FLOAT16:
        return vectors.astype("<f2")
    if dtype in HAS_SCALE:
        scaled = np.rint(vectors * np.float32(_STEPS / reach(vectors.shape[1])))
        steps: NDArray[np.float32] = np.clip(scaled, -_STEPS, _STEPS)
        if dtype is Dtype.UINT8:
            steps += 128
        return steps.astype(dtype.value)
    bits: NDArray[np.uint8] = np.packbits(vectors > 0, axis=1)
    if dtype is Dtype.BINARY:
        return (bits ^ 128).view(np.int8)
    return bits
