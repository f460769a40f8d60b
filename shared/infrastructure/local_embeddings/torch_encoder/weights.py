"""The weights of an encoder, by what they are for, and the same ones with fewer additions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from shared.infrastructure.local_embeddings.torch_encoder.architecture import (
    Architecture,
    UnsupportedArchitectureError,
)

# What the class that saved the weights put before the names: "bert.", "roberta.", nothing.
_PREFIX = re.compile(r"^.*?(?=(embeddings|encoder)\.)")


class Affine(NamedTuple):
    """A weight matrix (out, in) or a scale (out,), and what is added afterwards (out,)."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of one layer, in the order they are used."""

    query_key_value: Affine
    attention_output: Affine
    attention_norm: Affine
    intermediate: Affine
    output: Affine
    output_norm: Affine


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """The weights of an encoder.

    Attributes:
        words: Vector of each token id, (vocabulary, hidden).
        positions: Vector of each position, that of the token type 0 included, float32.
        norm: Normalisation of their sum.
        layers: The layers.
    """

    words: torch.Tensor
    positions: torch.Tensor
    norm: Affine
    layers: tuple[LayerWeights, ...]


def gather_weights(
    tensors: Mapping[str, torch.Tensor], architecture: Architecture
) -> EncoderWeights:
    """Find the weights in the tensors of a checkpoint.

    Raises:
        UnsupportedArchitectureError: One is missing.
    """
    found = {_PREFIX.sub("", name, count=1): tensor for name, tensor in tensors.items()}

    def tensor(name: str) -> torch.Tensor:
        try:
            return found[name]
        except KeyError:
            raise UnsupportedArchitectureError(f"the weights have no tensor {name!r}") from None

    def affine(name: str) -> Affine:
        return Affine(tensor(f"{name}.weight"), tensor(f"{name}.bias"))

    def layer(name: str) -> LayerWeights:
        parts = [affine(f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
        return LayerWeights(
            Affine(
                torch.cat([part.weight for part in parts]),
                torch.cat([part.bias for part in parts if part.bias is not None]),
            ),
            affine(f"{name}.attention.output.dense"),
            affine(f"{name}.attention.output.LayerNorm"),
            affine(f"{name}.intermediate.dense"),
            affine(f"{name}.output.dense"),
            affine(f"{name}.output.LayerNorm"),
        )

    # One text a row means one token type, so that its vector is part of every position's.
    types = tensor("embeddings.token_type_embeddings.weight")
    return EncoderWeights(
        words=tensor("embeddings.word_embeddings.weight"),
        positions=tensor("embeddings.position_embeddings.weight").float() + types[0].float(),
        norm=affine("embeddings.LayerNorm"),
        layers=tuple(layer(f"encoder.layer.{number}") for number in range(architecture.layers)),
    )


def without_residual_biases(weights: EncoderWeights) -> EncoderWeights:
    """Return weights with the same result, in which no bias is added together with a residual.

    The bias c of a projection that ends in `x + W h + c` goes into the bias of the normalisation
    that made x; whoever else reads x takes it off again in a bias of his own. What is left of the
    sum is a matrix product that adds to x in place.
    """
    projections = [
        projection
        for layer in weights.layers
        for projection in (layer.attention_output, layer.output)
    ]
    shifts = [_bias(projection) for projection in projections]
    # The last normalisation is followed by no projection.
    shifts.append(torch.zeros_like(shifts[-1]))
    layers: list[LayerWeights] = []
    for number, layer in enumerate(weights.layers):
        into_attention, into_output, into_next = shifts[2 * number : 2 * number + 3]
        layers.append(
            LayerWeights(
                _shifted_input(layer.query_key_value, into_attention),
                Affine(layer.attention_output.weight, None),
                _shifted_output(layer.attention_norm, into_output),
                _shifted_input(layer.intermediate, into_output),
                Affine(layer.output.weight, None),
                _shifted_output(layer.output_norm, into_next),
            )
        )
    norm = _shifted_output(weights.norm, shifts[0])
    return dataclasses.replace(weights, norm=norm, layers=tuple(layers))


def _bias(affine: Affine) -> torch.Tensor:
    if affine.bias is None:
        return torch.zeros(len(affine.weight))
    return affine.bias.float()


def _shifted_output(affine: Affine, shift: torch.Tensor) -> Affine:
    return Affine(affine.weight, _bias(affine) + shift)


def _shifted_input(affine: Affine, shift: torch.Tensor) -> Affine:
    return Affine(affine.weight, _bias(affine) - affine.weight.float() @ shift)
