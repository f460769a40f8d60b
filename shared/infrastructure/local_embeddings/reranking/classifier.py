"""The graph of an encoder with a classification head, whose one label is the score of a pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from shared.infrastructure.local_embeddings.errors import UnsupportedModelError
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.onnx_encoder.architectures import Architecture
from shared.infrastructure.local_embeddings.onnx_encoder.checkpoint import Checkpoint
from shared.infrastructure.local_embeddings.onnx_encoder.encoder import (
    Encoder,
    Float32Linear,
    Linear,
)
from shared.infrastructure.local_embeddings.onnx_encoder.graph import FUSED, Graph, GraphBuilder


class _Head(NamedTuple):
    """What follows the vector of the first token.

    Attributes:
        dense: First projection.
        activation: Operator after it.
        out: Second projection, to the labels.
    """

    dense: str
    activation: str
    out: str


_ROBERTA = _Head("classifier.dense", "Tanh", "classifier.out_proj")
_HEADS = {
    "albert": _Head("albert.pooler", "Tanh", "classifier"),
    "bert": _Head("bert.pooler.dense", "Tanh", "classifier"),
    "camembert": _ROBERTA,
    "distilbert": _Head("pre_classifier", "Relu", "classifier"),
    "electra": _ROBERTA._replace(activation="Gelu"),
    "mpnet": _ROBERTA,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


def build_classifier(files: ModelFiles, linear: Callable[[GraphBuilder], Linear]) -> Graph:
    """Return the graph of a cross-encoder.

    Inputs are `input_ids` and `attention_mask`, int64 (n, s), padded on the right; `pooled_token`,
    int64 (n,), the place of the first token; and, if the model tells types of tokens apart,
    `token_type_ids`, int64 (n, s). The output is `embeddings`, float32 (n, 1).

    Args:
        files: The model.
        linear: How the encoder's projections are computed.

    Raises:
        UnsupportedModelError: The model has an option that no graph here expresses, or no
            classification head with one label.
    """
    architecture = Architecture.of(files)
    graph = GraphBuilder(Checkpoint(files.encoder_weights))
    head = _HEADS[files.model_type]
    _check(files, graph.checkpoint, head)
    for name in ("input_ids", "attention_mask"):
        graph.input(name, "INT64", ["n", "s"])
    types = ""
    if int(files.config.get("type_vocab_size", 1)) > 1:
        types = graph.input("token_type_ids", "INT64", ["n", "s"])
    encoder = Encoder(graph, architecture, linear(graph), types)
    first = encoder(graph.input("pooled_token", "INT64", ["n"]))
    exact = Float32Linear(graph)
    domain = FUSED if head.activation == "Gelu" else ""
    active = graph.op(head.activation, exact(first, head.dense), domain=domain)
    return graph.finish(exact(active, head.out), ["n", 1])


def _check(files: ModelFiles, checkpoint: Checkpoint, head: _Head) -> None:
    if f"{head.dense}.weight" not in checkpoint or f"{head.out}.weight" not in checkpoint:
        raise UnsupportedModelError(
            f"{files.root} has no classification head: it is no cross-encoder"
        )
    labels = checkpoint[f"{head.out}.weight"].shape[0]
    if labels != 1:
        raise UnsupportedModelError(
            f"the classification head of {files.root} has {labels} labels: that of a reranker has 1"
        )
