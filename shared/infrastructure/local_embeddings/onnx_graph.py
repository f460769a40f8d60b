"""Write a BERT encoder and its pooling as one ONNX graph, straight from its safetensors.

It takes neither torch nor an exporter. The graph uses ONNX Runtime's fused operators, and it
returns one vector a text, so that token vectors never leave the runtime.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.config import Pooling
from shared.infrastructure.local_embeddings.errors import UnsupportedModelError
from shared.infrastructure.local_embeddings.files import ModelFiles
from shared.infrastructure.local_embeddings.optional import require

if TYPE_CHECKING:
    from onnx import ModelProto

Array = NDArray[Any]
Weights = Mapping[str, Array]

BUILDER_VERSION = "1"
"""Changes whenever the graph of the same model does."""

SUPPORTED_MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")

_FUSED = "com.microsoft"
_OPSETS = {"": 17, _FUSED: 1}
_IR_VERSION = 8
# Added to the attention scores of padding. Minus infinity would be NaN where all is padding, and
# float32's smallest number overflows once a runtime computes in half precision.
_PADDING_SCORE = -1e4
_LARGEST_PROTOBUF = 2**31 - 2**20
# What the class that saved the weights put before the names: "bert.", "roberta.", nothing.
_PREFIX = re.compile(r"^.*?(?=(embeddings|encoder)\.)")


def can_build(files: ModelFiles) -> bool:
    """Whether `build_graph` knows the architecture and has its weights."""
    return files.model_type in SUPPORTED_MODEL_TYPES and bool(files.weights)


def build_graph(files: ModelFiles, pooling: Pooling) -> ModelProto:
    """Return the ONNX model of an encoder with its pooling.

    Inputs: `input_ids` and `attention_mask`, int64 (n, s), padded on the right. Output:
    `embeddings`, float32, not normalised: (n, dim) for MEAN and CLS, else token vectors
    (n, s, dim).

    Raises:
        UnsupportedModelError: The model has an option that this graph does not express.
    """
    _check(files)
    onnx = require("onnx", extra="onnx")
    helper, types = onnx.helper, onnx.TensorProto
    graph = _Graph(onnx, _read_weights(files))
    pooled = _pool(graph, _encode(graph, files), pooling)
    graph.op("Identity", pooled, output="embeddings")
    texts_and_tokens = ["n", "s"]
    shape = ["n"] if pooling in {Pooling.MEAN, Pooling.CLS} else texts_and_tokens
    model: ModelProto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "encoder",
            [
                helper.make_tensor_value_info(name, types.INT64, texts_and_tokens)
                for name in ("input_ids", "attention_mask")
            ],
            [
                helper.make_tensor_value_info(
                    "embeddings", types.FLOAT, [*shape, int(files.config["hidden_size"])]
                )
            ],
            graph.tensors,
        ),
        opset_imports=[helper.make_opsetid(*opset) for opset in _OPSETS.items()],
        ir_version=_IR_VERSION,
        producer_name="morgan-sdk",
    )
    return model


class _Graph:
    """Nodes and weights in the making; every method returns the name of what it adds."""

    def __init__(self, onnx: Any, weights: Weights) -> None:
        self.onnx = onnx
        self.weights = weights
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def op(
        self, kind: str, *inputs: str, domain: str = "", output: str = "", **options: Any
    ) -> str:
        output = output or f"{kind}_{len(self.nodes)}"
        node = self.onnx.helper.make_node(kind, inputs, [output], domain=domain, **options)
        self.nodes.append(node)
        return output

    def cast(self, x: str, kind: str) -> str:
        return self.op("Cast", x, to=getattr(self.onnx.TensorProto, kind))

    def constant(self, array: Array) -> str:
        name = f"constant_{len(self.tensors)}"
        tensor = self.onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
        self.tensors.append(tensor)
        return name

    def weight(self, name: str) -> Array:
        try:
            return self.weights[name]
        except KeyError:
            raise UnsupportedModelError(f"the weights have no tensor {name!r}") from None

    def linear(self, x: str, name: str) -> str:
        """Multiply; the bias is left to the fused operator that follows."""
        return self.op("MatMul", x, self.constant(self.weight(f"{name}.weight").T))

    def parameter(self, name: str) -> str:
        return self.constant(self.weight(name))


def _encode(graph: _Graph, files: ModelFiles) -> str:
    """Add the encoder; its output is the token vectors (n, s, dim)."""
    config = files.config
    epsilon = float(config.get("layer_norm_eps", 1e-12))
    hidden = _embed(graph, files, epsilon)
    padding = graph.cast("attention_mask", "INT32")
    for number in range(int(config["num_hidden_layers"])):
        layer = f"encoder.layer.{number}"
        attended = graph.op(
            "Attention",
            hidden,
            *_query_key_value(graph, f"{layer}.attention.self"),
            padding,
            domain=_FUSED,
            num_heads=int(config["num_attention_heads"]),
            mask_filter_value=_PADDING_SCORE,
        )
        hidden = _add_and_norm(graph, attended, hidden, f"{layer}.attention.output", epsilon)
        wide = graph.linear(hidden, f"{layer}.intermediate.dense")
        bias = graph.parameter(f"{layer}.intermediate.dense.bias")
        active = graph.op("BiasGelu", wide, bias, domain=_FUSED)
        hidden = _add_and_norm(graph, active, hidden, f"{layer}.output", epsilon)
    return hidden


def _embed(graph: _Graph, files: ModelFiles, epsilon: float) -> str:
    words = graph.op("Gather", graph.parameter("embeddings.word_embeddings.weight"), "input_ids")
    summed = graph.op("Add", words, _positions(graph, files))
    norm = "embeddings.LayerNorm"
    scale, bias = graph.parameter(f"{norm}.weight"), graph.parameter(f"{norm}.bias")
    return graph.op("LayerNormalization", summed, scale, bias, epsilon=epsilon)


def _positions(graph: _Graph, files: ModelFiles) -> str:
    # One text a row means one token type, so that its vector is part of every position's.
    types = graph.weight("embeddings.token_type_embeddings.weight")
    table = graph.constant(graph.weight("embeddings.position_embeddings.weight") + types[0])
    if not files.counts_positions_from_padding:
        zero = graph.constant(np.zeros(1, np.int64))
        return graph.op("Slice", table, zero, graph.op("Shape", "input_ids", start=1))
    # As RoBERTa counts: a padding token has no position, even one that is written in a text.
    padding = graph.constant(np.array([files.config["pad_token_id"]], np.int64))
    real = graph.cast(graph.op("Not", graph.op("Equal", "input_ids", padding)), "INT64")
    count = graph.op("CumSum", real, graph.constant(np.ones((), np.int64)))
    return graph.op("Gather", table, graph.op("Add", graph.op("Mul", count, real), padding))


def _query_key_value(graph: _Graph, name: str) -> tuple[str, str]:
    parts = [f"{name}.{part}" for part in ("query", "key", "value")]
    weight = np.concatenate([graph.weight(f"{part}.weight").T for part in parts], axis=1)
    bias = np.concatenate([graph.weight(f"{part}.bias") for part in parts])
    return graph.constant(weight), graph.constant(bias)


def _add_and_norm(graph: _Graph, x: str, residual: str, name: str, epsilon: float) -> str:
    parameters = ("LayerNorm.weight", "LayerNorm.bias", "dense.bias")
    return graph.op(
        "SkipLayerNormalization",
        graph.linear(x, f"{name}.dense"),
        residual,
        *(graph.parameter(f"{name}.{parameter}") for parameter in parameters),
        domain=_FUSED,
        epsilon=epsilon,
    )


def _pool(graph: _Graph, tokens: str, pooling: Pooling) -> str:
    if pooling is Pooling.CLS:
        return graph.op("Gather", tokens, graph.constant(np.zeros((), np.int64)), axis=1)
    if pooling is not Pooling.MEAN:
        return tokens
    axis = graph.constant(np.ones(1, np.int64))
    mask = graph.cast("attention_mask", "FLOAT")
    total = graph.op("MatMul", graph.op("Unsqueeze", mask, axis), tokens)
    count = graph.op("ReduceSum", mask, axis, keepdims=1)
    at_least_one = graph.op("Max", count, graph.constant(np.ones(1, np.float32)))
    return graph.op("Div", graph.op("Squeeze", total, axis), at_least_one)


def _check(files: ModelFiles) -> None:
    if not can_build(files):
        raise UnsupportedModelError(
            f"{files.root} is a {files.model_type!r} model: an ONNX graph is built for "
            f"{', '.join(SUPPORTED_MODEL_TYPES)} with safetensors weights; for another, put "
            "onnx/model.onnx into the directory, or use a torch backend"
        )
    expected = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    for option, value in expected.items():
        if files.config.get(option, value) != value:
            raise UnsupportedModelError(
                f"no ONNX graph is built for {option}={files.config[option]!r}, only for "
                f"{value!r}: use a torch backend"
            )


def _read_weights(files: ModelFiles) -> Weights:
    safetensors = require("safetensors", extra="onnx")
    weights: dict[str, Array] = {}
    for path in sorted(files.encoder_dir.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - the handle is no mapping
                weights[_PREFIX.sub("", name, count=1)] = tensors.get_tensor(name).astype(
                    np.float32
                )
    if sum(array.nbytes for array in weights.values()) > _LARGEST_PROTOBUF:
        raise UnsupportedModelError(
            f"the float32 weights of {files.root} exceed the 2 GiB of one ONNX file: use a torch "
            "backend"
        )
    return weights
