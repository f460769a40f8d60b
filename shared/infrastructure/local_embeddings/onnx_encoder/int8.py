"""Projections in int8 that give a text one vector, whatever runs beside it.

ONNX Runtime's dynamic quantization scales all numbers of a pass by the largest of them, so that a
text's vector depends on its neighbours. Here every token has a scale of its own, and every column
of a weight has; what is added up are integers, in whatever order.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from shared.infrastructure.local_embeddings.onnx_encoder.checkpoint import Array, Checkpoint
from shared.infrastructure.local_embeddings.onnx_encoder.graph import FUSED, GraphBuilder
from shared.infrastructure.local_embeddings.optional import require

RECIPE = "int8 by token and column, 1"
"""Changes whenever the same weights give other vectors."""

_SMALLEST_SCALE = 1e-12
_PROBED = 64


class _Range(NamedTuple):
    """How numbers are spread over the 256 of an unsigned byte.

    Attributes:
        zero: The byte that means 0.
        smallest: Scale of a token at least, so that the smallest number there can be is not cut.
    """

    zero: int
    smallest: float

    @classmethod
    def of(cls, lowest: float | None) -> _Range:
        """Return the range of numbers not smaller than `lowest`; None is as large as any."""
        if lowest is None:
            return cls(128, _SMALLEST_SCALE)
        # Few bytes for what is below zero leave many for what is above.
        zero = 32 if lowest else 0
        return cls(zero, -lowest / zero if zero else _SMALLEST_SCALE)

    @property
    def largest(self) -> int:
        """Steps from zero to the largest byte; one fewer than there are, if they go both ways."""
        return 255 - self.zero


class Int8Linear:
    """Adds projections to a graph.

    Args:
        graph: The graph; a projection's weight is part of it, a quarter of its float32 size.
    """

    def __init__(self, graph: GraphBuilder) -> None:
        self._graph = graph
        self._quantized: dict[str, tuple[str, str, _Range]] = {}
        self._one = graph.constant(1, np.float32)
        self._row = graph.constant([-1], np.int64)

    def __call__(self, x: str, name: str, lowest: float | None = None) -> str:
        """Project `x`, as `Linear` says."""
        if x not in self._quantized:
            self._quantized[x] = self._quantize(x, _Range.of(lowest))
        numbers, scale, spread = self._quantized[x]
        weight, by_column = quantize_columns(self._graph.checkpoint[f"{name}.weight"].read().T)
        product = self._graph.op(
            "MatMulIntegerToFloat",
            numbers,
            self._graph.constant(weight),
            self._one,
            self._graph.constant(by_column),
            self._graph.constant(spread.zero, np.uint8),
            domain=FUSED,
        )
        bias = self._graph.weight(f"{name}.bias")
        return self._graph.op("Add", self._graph.op("Mul", product, scale), bias)

    def _quantize(self, x: str, spread: _Range) -> tuple[str, str, _Range]:
        """Return `x` in bytes, and the scale of each token, (tokens, 1)."""
        graph = self._graph
        size = x if spread.zero < 128 else graph.op("Abs", x)
        peak = graph.op("ReduceMax", size, axes=[1], keepdims=1)
        step = graph.op("Mul", peak, graph.constant(1 / spread.largest, np.float32))
        scale = graph.op("Max", step, graph.constant(spread.smallest, np.float32))
        by_row = graph.op("Reshape", scale, self._row)
        zeros = graph.filled(graph.op("Shape", by_row), np.array([spread.zero], np.uint8))
        return graph.op("QuantizeLinear", x, by_row, zeros, axis=0), scale, spread


@functools.cache
def is_exact() -> bool:
    """Whether this processor gives exact sums of products of bytes.

    Without instructions for it (VNNI, or dot products on ARM), two products are added up in 16
    bits, which do not hold the sum of large ones.
    """
    graph = GraphBuilder(Checkpoint([]))
    zero, one = graph.constant(0, np.uint8), graph.constant(1, np.float32)
    weight = graph.constant(np.full((_PROBED, _PROBED), 127, np.int8))
    bytes_in = graph.input("bytes", "UINT8", ["n", _PROBED])
    sums = graph.op("MatMulIntegerToFloat", bytes_in, weight, one, one, zero, domain=FUSED)
    source = graph.finish(sums, ["n", _PROBED]).source
    session = require("onnxruntime", extra="onnx").InferenceSession(
        source, providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, {"bytes": np.full((_PROBED, _PROBED), 255, np.uint8)})
    return bool((result == _PROBED * 255 * 127).all())


def quantize_columns(weight: Array) -> tuple[Array, Array]:
    """Return a matrix (in, out) as int8 from -127 to 127, and the scale of each column."""
    peaks = np.abs(weight).max(axis=0)
    scales = np.maximum(peaks / 127, _SMALLEST_SCALE).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales
