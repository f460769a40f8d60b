"""The layers of a BERT encoder over tokens that lie one after another, without padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from shared.infrastructure.local_embeddings.torch_encoder.architecture import Architecture
from shared.infrastructure.local_embeddings.torch_encoder.attention import Attention
from shared.infrastructure.local_embeddings.torch_encoder.linear import Linear
from shared.infrastructure.local_embeddings.torch_encoder.weights import (
    Affine,
    EncoderWeights,
    LayerWeights,
)


@dataclass(frozen=True, slots=True)
class _Layer:
    query_key_value: Linear
    attention_output: Linear
    attention_norm: Affine
    intermediate: Linear
    output: Linear
    output_norm: Affine


class Encoder:
    """Token ids to token vectors; several threads may call it at once.

    Args:
        weights: What it has learnt.
        architecture: Its sizes.
        linear: Makes a projection of a matrix and a bias.
        device: Where it runs.
        dtype: Number format of weights and arithmetic.
    """

    def __init__(
        self,
        weights: EncoderWeights,
        architecture: Architecture,
        linear: Callable[[Affine], Linear],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        def cast(affine: Affine, to: torch.dtype = dtype) -> Affine:
            weight, bias = affine
            return Affine(weight.to(device, to), bias if bias is None else bias.to(device, to))

        def layer(of: LayerWeights) -> _Layer:
            return _Layer(
                linear(cast(of.query_key_value)),
                linear(cast(of.attention_output)),
                cast(of.attention_norm),
                linear(cast(of.intermediate)),
                linear(cast(of.output)),
                cast(of.output_norm),
            )

        # A CPU reads few rows of these tables: they stay in the file's pages, as exact as they are.
        on_cpu = device.type == "cpu"
        tables = torch.float32 if on_cpu else dtype
        self._words = weights.words if on_cpu else weights.words.to(device, dtype)
        self._positions = weights.positions.to(device, tables)
        self._norm = cast(weights.norm, tables)
        self._layers = [layer(of) for of in weights.layers]
        self._epsilon = architecture.epsilon
        self._dtype = dtype

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        """Return the vectors of tokens, (t, hidden).

        Args:
            ids: Token ids, int32 or int64 (t,).
            positions: Position of each in its text, as the model counts, of the same type.
            attention: Which tokens look at which.
        """
        x = functional.embedding(ids, self._words).to(self._positions.dtype)
        x += functional.embedding(positions, self._positions)
        x = self._normalized(x, self._norm).to(self._dtype)
        for layer in self._layers:
            attended = attention(layer.query_key_value(x))
            x = self._normalized(layer.attention_output.add(attended, x), layer.attention_norm)
            wide = layer.intermediate.gelu(x)
            x = self._normalized(layer.output.add(wide, x), layer.output_norm)
        return x

    def _normalized(self, x: torch.Tensor, norm: Affine) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, self._epsilon)
