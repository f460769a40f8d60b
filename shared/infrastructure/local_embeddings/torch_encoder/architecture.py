"""The sizes of an encoder, from its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODEL_TYPES = {"bert": False, "roberta": True, "xlm-roberta": True, "camembert": True}
"""Model types this encoder runs, and whether they count positions from the padding's id on."""

_EXPECTED = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


class UnsupportedArchitectureError(ValueError):
    """The encoder is of another kind, or has an option that is not expressed here."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What decides the arithmetic of an encoder.

    Attributes:
        hidden: Numbers in the vector of a token.
        layers: Layers.
        heads: Attention heads of a layer.
        epsilon: What is added to a variance before its root is taken.
        pad_id: Id of the padding token.
        counts_positions_from_padding: Whether the first token has the position after `pad_id`, and
            a padding token written in a text has none.
    """

    hidden: int
    layers: int
    heads: int
    epsilon: float
    pad_id: int
    counts_positions_from_padding: bool

    @staticmethod
    def supports(config: Mapping[str, Any]) -> bool:
        """Whether `of` understands a `config.json`."""
        try:
            Architecture.of(config)
        except UnsupportedArchitectureError:
            return False
        return True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Architecture:
        """Return the architecture that a `config.json` describes.

        Raises:
            UnsupportedArchitectureError: It is none of `MODEL_TYPES`, or has an option beyond them.
        """
        kind = str(config.get("model_type"))
        if kind not in MODEL_TYPES:
            raise UnsupportedArchitectureError(f"{kind!r} is none of {', '.join(MODEL_TYPES)}")
        for option, value in _EXPECTED.items():
            if config.get(option, value) != value:
                raise UnsupportedArchitectureError(
                    f"{option} is {config[option]!r} and not {value!r}"
                )
        from_padding = MODEL_TYPES[kind]
        pad_id = config.get("pad_token_id")
        return cls(
            hidden=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            epsilon=float(config.get("layer_norm_eps", 1e-12)),
            pad_id=int(from_padding) if pad_id is None else int(pad_id),
            counts_positions_from_padding=from_padding,
        )
