"""MPNet's attention bias: a number for each head and each distance between two tokens."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.onnx_encoder.graph import GraphBuilder

_WEIGHTS = "encoder.relative_attention_bias.weight"
# Distances from here on are alike.
_FARTHEST = 128


def relative_positions(graph: GraphBuilder) -> str:
    """Add what is added to the attention scores, (1, heads, s, s); empty if nothing is."""
    if _WEIGHTS not in graph.checkpoint:
        return ""
    table = graph.checkpoint[_WEIGHTS].read()
    distances = np.arange(-_FARTHEST, _FARTHEST + 1)
    by_distance = graph.constant(table[buckets(distances, len(table))])
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    length = graph.op("Gather", graph.op("Shape", "input_ids"), one)
    place = graph.op("Range", zero, length, one)
    row = graph.op("Unsqueeze", place, graph.constant([1], np.int64))
    distance = graph.op("Sub", place, row)
    bounds = (graph.constant(bound, np.int64) for bound in (-_FARTHEST, _FARTHEST))
    near = graph.op("Clip", distance, *bounds)
    index = graph.op("Add", near, graph.constant(_FARTHEST, np.int64))
    bias = graph.op("Transpose", graph.op("Gather", by_distance, index), perm=[2, 0, 1])
    return graph.op("Unsqueeze", bias, graph.constant([0], np.int64))


def buckets(distances: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the row of the table for each distance from a token to the one it attends to.

    Half of the `count` rows are for tokens before, half for those after; of each half, the first
    rows are for one distance each, and the others for ever wider ranges.
    """
    half = count // 2
    exact = half // 2
    ahead = np.abs(distances)
    # In single precision, as the model was trained: it decides on which side a bound falls.
    ratio = np.log(np.maximum(ahead, 1).astype(np.float32) / exact)
    scaled = ratio / np.float32(math.log(_FARTHEST / exact)) * np.float32(half - exact)
    wide = np.minimum(exact + scaled.astype(np.int64), half - 1)
    rows: NDArray[np.int64] = np.where(distances > 0, half, 0) + np.where(
        ahead < exact, ahead, wide
    )
    return rows
