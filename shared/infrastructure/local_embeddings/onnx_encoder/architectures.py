"""What the encoders that a graph is built for have in common, and in what they differ."""

from __future__ import annotations

from dataclasses import dataclass

from shared.infrastructure.local_embeddings.errors import UnsupportedModelError
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles


@dataclass(frozen=True, slots=True)
class LayerNames:
    """What a layer's weights are called, after `prefix` with the layer's number in it.

    Attributes:
        prefix: What comes before all others.
        query: Projection of the attention's queries.
        key: Projection of its keys.
        value: Projection of its values.
        attended: Projection of its result.
        attention_norm: Normalisation after it.
        wide: First projection of the feed-forward, to more numbers.
        narrow: Second one, back to fewer.
        norm: Normalisation after it.
    """

    prefix: str
    query: str
    key: str
    value: str
    attended: str
    attention_norm: str
    wide: str
    narrow: str
    norm: str


_BERT = LayerNames(
    prefix="encoder.layer.{}.",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attended="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    wide="intermediate.dense",
    narrow="output.dense",
    norm="output.LayerNorm",
)
_MPNET = LayerNames(
    prefix="encoder.layer.{}.",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    attended="attention.attn.o",
    attention_norm="attention.LayerNorm",
    wide="intermediate.dense",
    narrow="output.dense",
    norm="output.LayerNorm",
)
_DISTILBERT = LayerNames(
    prefix="transformer.layer.{}.",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attended="attention.out_lin",
    attention_norm="sa_layer_norm",
    wide="ffn.lin1",
    narrow="ffn.lin2",
    norm="output_layer_norm",
)
_ALBERT = LayerNames(
    prefix="encoder.albert_layer_groups.0.albert_layers.0.",  # one, used again and again
    query="attention.query",
    key="attention.key",
    value="attention.value",
    attended="attention.dense",
    attention_norm="attention.LayerNorm",
    wide="ffn",
    narrow="ffn_output",
    norm="full_layer_layer_norm",
)
_NAMES = {
    "albert": _ALBERT,
    "bert": _BERT,
    "camembert": _BERT,
    "distilbert": _DISTILBERT,
    "electra": _BERT,
    "mpnet": _MPNET,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}

SUPPORTED_MODEL_TYPES = tuple(_NAMES)

# Operator and domain of each activation, and the smallest number it gives.
ACTIVATIONS = {
    "gelu": ("Gelu", -0.17),
    "gelu_new": ("FastGelu", -0.171),
    "gelu_pytorch_tanh": ("FastGelu", -0.171),
    "relu": ("Relu", 0.0),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes and names of one encoder.

    Attributes:
        names: What the weights of a layer are called.
        hidden: Numbers in the vector of a token.
        layers: Layers.
        heads: Attention heads of a layer.
        epsilon: What is added to a variance before its root is taken.
        activation: Activation of the feed-forward, one of `ACTIVATIONS`.
        positions_from_padding: Id of the padding token if positions are counted as RoBERTa does,
            from the one after it on, and not for padding; None if they are counted from 0.
    """

    names: LayerNames
    hidden: int
    layers: int
    heads: int
    epsilon: float
    activation: str
    positions_from_padding: int | None

    @classmethod
    def of(cls, files: ModelFiles) -> Architecture:
        """Return the architecture of a model.

        Raises:
            UnsupportedModelError: It has an option that no graph here expresses.
        """
        if not can_build(files):
            raise UnsupportedModelError(
                f"{files.root} is a {files.model_type!r} model: an ONNX graph is built for "
                f"{', '.join(SUPPORTED_MODEL_TYPES)} with safetensors weights; for another, put "
                "onnx/model.onnx into the directory, or use a torch backend"
            )
        config = files.config
        expected = {
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "num_hidden_groups": 1,
            "inner_group_num": 1,
        }
        for option, value in expected.items():
            if config.get(option, value) != value:
                raise _unsupported(files, option)
        is_distilbert = files.model_type == "distilbert"
        activation = "activation" if is_distilbert else "hidden_act"
        if config.get(activation, "gelu") not in ACTIVATIONS:
            raise _unsupported(files, activation)
        return cls(
            names=_NAMES[files.model_type],
            hidden=int(config["dim" if is_distilbert else "hidden_size"]),
            layers=int(config["n_layers" if is_distilbert else "num_hidden_layers"]),
            heads=int(config["n_heads" if is_distilbert else "num_attention_heads"]),
            epsilon=float(config.get("layer_norm_eps", 1e-12)),
            activation=str(config.get(activation, "gelu")),
            positions_from_padding=(
                files.pad_token_id if files.counts_positions_from_padding else None
            ),
        )


def can_build(files: ModelFiles) -> bool:
    """Whether a graph is built for the model: its architecture is known and its weights there."""
    return files.model_type in _NAMES and bool(files.encoder_weights)


def _unsupported(files: ModelFiles, option: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{files.root} has {option} {files.config[option]!r}, which the ONNX graph does not "
        "express: use a torch backend"
    )
