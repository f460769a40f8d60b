"""An encoder and its pooling as one graph: ids and masks go in, a vector a text comes out.

All arithmetic on single tokens sees them as one long list, without texts, so that a projection is
one matrix product with its bias in it. The fused attention is ONNX Runtime's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from shared.infrastructure.local_embeddings.config import Pooling
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.onnx_encoder.architectures import (
    ACTIVATIONS,
    Architecture,
)
from shared.infrastructure.local_embeddings.onnx_encoder.checkpoint import Checkpoint
from shared.infrastructure.local_embeddings.onnx_encoder.graph import FUSED, Graph, GraphBuilder
from shared.infrastructure.local_embeddings.onnx_encoder.relative_positions import (
    relative_positions,
)

# Added to the attention scores of padding. Minus infinity would be NaN where all is padding, and
# float32's smallest number overflows once a runtime computes in half precision.
_PADDING_SCORE = -1e4
# Projections of embeddings that are narrower than the layers: Electra's and Albert's.
_WIDENING = ("embeddings_project", "encoder.embedding_hidden_mapping_in")
_TYPES = "embeddings.token_type_embeddings.weight"


class Linear(Protocol):
    """Adds the projections of a layer to a graph."""

    def __call__(self, x: str, name: str, lowest: float | None = None) -> str:
        """Project `x` (tokens, in) to (tokens, out).

        Args:
            x: What is projected.
            name: Of the weights, without `.weight` and `.bias`.
            lowest: Smallest number there can be in `x`; None if there is no bound.
        """
        ...


class Float32Linear:
    """Projections in float32, by weights where they lie."""

    def __init__(self, graph: GraphBuilder) -> None:
        self._graph = graph

    def __call__(self, x: str, name: str, lowest: float | None = None) -> str:
        weight, bias = self._graph.weight(f"{name}.weight"), self._graph.weight(f"{name}.bias")
        return self._graph.op("Gemm", x, weight, bias, transB=1)


def build_graph(
    files: ModelFiles,
    pooling: Pooling,
    linear: Callable[[GraphBuilder], Linear] = Float32Linear,
) -> Graph:
    """Return the graph of an encoder and its pooling.

    Inputs are `input_ids` and `attention_mask`, int64 (n, s), padded on the right; and for all
    poolings but MAX one more that says what is pooled: for CLS and LAST_TOKEN `pooled_token`,
    int64 (n,), the place of a token in its text; for others `token_shares`, float32 (n, s), the
    share of each token in its text's vector.

    The output is `embeddings`, float32 (n, dim), not normalised; for MAX it is the vectors of
    tokens (n, s, dim).

    Args:
        files: The model.
        pooling: How token vectors become one.
        linear: How projections are computed.

    Raises:
        UnsupportedModelError: The model has an option that no graph here expresses.
    """
    architecture = Architecture.of(files)
    graph = GraphBuilder(Checkpoint(files.encoder_weights))
    for name in ("input_ids", "attention_mask"):
        graph.input(name, "INT64", ["n", "s"])
    encoder = Encoder(graph, architecture, linear(graph))
    if pooling in {Pooling.CLS, Pooling.LAST_TOKEN}:
        vectors = encoder(graph.input("pooled_token", "INT64", ["n"]))
        return graph.finish(vectors, ["n", architecture.hidden])
    tokens = graph.op("Reshape", encoder(), encoder.by_text)
    if pooling is Pooling.MAX:
        return graph.finish(tokens, ["n", "s", architecture.hidden])
    axis = graph.constant([1], np.int64)
    shares = graph.op("Unsqueeze", graph.input("token_shares", "FLOAT", ["n", "s"]), axis)
    vectors = graph.op("Squeeze", graph.op("MatMul", shares, tokens), axis)
    return graph.finish(vectors, ["n", architecture.hidden])


class Encoder:
    """Adds an encoder to a graph, layer by layer.

    Args:
        graph: The graph, which has the inputs `input_ids` and `attention_mask`.
        architecture: The encoder.
        linear: How projections are computed.
        types: Input that has the type of each token, (n, s); without it all are of the first.

    Attributes:
        by_text: Shape (n, s, -1), known only at run time.
    """

    def __init__(
        self, graph: GraphBuilder, architecture: Architecture, linear: Linear, types: str = ""
    ) -> None:
        self._graph = graph
        self._types = types
        self._of = architecture
        self._linear = linear
        self._exact = Float32Linear(graph)
        rest = graph.constant([-1], np.int64)
        self.by_text = graph.op("Concat", graph.op("Shape", "input_ids"), rest, axis=0)
        self._flat = graph.constant([-1, architecture.hidden], np.int64)
        self._padding = graph.cast("attention_mask", "INT32")
        self._bias = relative_positions(graph)

    def __call__(self, only: str = "") -> str:
        """Return the vectors of tokens, (tokens, hidden).

        Args:
            only: Place of the one token of each text whose vector is wanted, (n,); the last layer
                then computes no other.
        """
        *earlier, last = map(self._of.names.prefix.format, range(self._of.layers))
        x = self._embed()
        for prefix in earlier:
            x = self._layer(x, x, self.by_text, prefix, self._bias)
        if not only:
            return self._layer(x, x, self.by_text, last, self._bias)
        graph, zero, one = self._graph, *(self._graph.constant(n, np.int64) for n in (0, 1))
        texts, longest = (graph.op("Gather", self.by_text, axis) for axis in (zero, one))
        start = graph.op("Mul", graph.op("Range", zero, texts, one), longest)
        asking = graph.op("Gather", x, graph.op("Add", start, only))
        by_text = graph.constant([-1, 1, self._of.hidden], np.int64)
        return self._layer(asking, x, by_text, last, self._bias_of(only))

    def _layer(self, asking: str, x: str, by_text: str, prefix: str, bias: str) -> str:
        """Return the vectors of `asking` after a layer in which they attend to `x`."""
        names, graph = self._of.names, self._graph
        query = graph.op("Reshape", self._linear(asking, prefix + names.query), by_text)
        key = graph.op("Reshape", self._linear(x, prefix + names.key), self.by_text)
        # Rounding what attention adds up would cost more than rounding all that is projected else.
        value = graph.op("Reshape", self._exact(x, prefix + names.value), self.by_text)
        attended = graph.op(
            "MultiHeadAttention",
            *(query, key, value, "", self._padding, bias),
            domain=FUSED,
            num_heads=self._of.heads,
            mask_filter_value=_PADDING_SCORE,
        )
        attended = self._linear(graph.op("Reshape", attended, self._flat), prefix + names.attended)
        x = self._norm(graph.op("Add", attended, asking), prefix + names.attention_norm)
        kind, lowest = ACTIVATIONS[self._of.activation]
        domain = "" if kind == "Relu" else FUSED
        active = graph.op(kind, self._linear(x, prefix + names.wide), domain=domain)
        narrow = self._linear(active, prefix + names.narrow, lowest)
        return self._norm(graph.op("Add", narrow, x), prefix + names.norm)

    def _bias_of(self, only: str) -> str:
        """Return the attention bias of one token of each text, (n, heads, 1, s)."""
        if not self._bias:
            return ""
        graph = self._graph
        by_token = graph.op("Transpose", self._bias, perm=[2, 0, 1, 3])
        picked = graph.op("Gather", by_token, only)
        return graph.op("Transpose", picked, perm=[0, 2, 1, 3])

    def _embed(self) -> str:
        """Return the vectors of tokens before the first layer, (tokens, hidden)."""
        graph = self._graph
        words = graph.op("Gather", graph.weight("embeddings.word_embeddings.weight"), "input_ids")
        x = graph.op("Add", words, self._positions())
        if self._types:
            x = graph.op("Add", x, graph.op("Gather", graph.weight(_TYPES), self._types))
        x = self._norm(x, "embeddings.LayerNorm")
        for name in _WIDENING:
            if f"{name}.weight" in graph.checkpoint:
                width = graph.checkpoint[f"{name}.weight"].shape[1]
                flat = graph.op("Reshape", x, graph.constant([-1, width], np.int64))
                return self._exact(flat, name)
        return graph.op("Reshape", x, self._flat)

    def _positions(self) -> str:
        """Return the vectors of positions, (s, width) or (n, s, width)."""
        graph = self._graph
        table = graph.weight("embeddings.position_embeddings.weight")
        if _TYPES in graph.checkpoint and not self._types:
            # One text a row means one token type: its vector is part of every position's.
            first = graph.op("Gather", graph.weight(_TYPES), graph.constant(0, np.int64))
            table = graph.op("Add", table, first)
        if self._of.positions_from_padding is None:
            length = graph.op("Shape", "input_ids", start=1)
            return graph.op("Slice", table, graph.constant([0], np.int64), length)
        # As RoBERTa counts: a padding token has no position, even one that is written in a text.
        padding = graph.constant([self._of.positions_from_padding], np.int64)
        real = graph.cast(graph.op("Not", graph.op("Equal", "input_ids", padding)), "INT64")
        count = graph.op("CumSum", real, graph.constant(1, np.int64))
        return graph.op("Gather", table, graph.op("Add", graph.op("Mul", count, real), padding))

    def _norm(self, x: str, name: str) -> str:
        scale, bias = self._graph.weight(f"{name}.weight"), self._graph.weight(f"{name}.bias")
        return self._graph.op("LayerNormalization", x, scale, bias, epsilon=self._of.epsilon)
