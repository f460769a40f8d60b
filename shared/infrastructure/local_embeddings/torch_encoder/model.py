"""A loaded encoder with its pooling, on a CPU or on a CUDA device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.local_embeddings.torch_encoder.architecture import Architecture
from shared.infrastructure.local_embeddings.torch_encoder.attention import (
    PaddedAttention,
    RunAttention,
    VarlenAttention,
    has_varlen,
    runs_of,
)
from shared.infrastructure.local_embeddings.torch_encoder.cuda_device import CudaStream
from shared.infrastructure.local_embeddings.torch_encoder.cuda_pass import (
    CudaPasses,
    CudaQueues,
    PackedCompute,
)
from shared.infrastructure.local_embeddings.torch_encoder.encoder import Encoder
from shared.infrastructure.local_embeddings.torch_encoder.inputs import inputs_of
from shared.infrastructure.local_embeddings.torch_encoder.linear import (
    FusedLinear,
    PlainLinear,
    cpu_linear,
)
from shared.infrastructure.local_embeddings.torch_encoder.passes import EagerPasses, Passes
from shared.infrastructure.local_embeddings.torch_encoder.safetensors_file import SafetensorsFile
from shared.infrastructure.local_embeddings.torch_encoder.weights import (
    EncoderWeights,
    gather_weights,
    without_residual_biases,
)

CPU_BATCH_TOKENS = 2048
CUDA_BATCH_TOKENS = 16384
"""Tokens in one pass that run fastest, by kind of device."""


class TorchEncoder:
    """An encoder and its pooling; several threads may run it at once over one copy of the weights.

    Args:
        tensors: The weights of a checkpoint, by the names that transformers gives them.
        config: The encoder's `config.json`.
        pooling: One of `POOLINGS`.
        device: Where it runs.
        dtype: Number format of weights and arithmetic; the pooling sums in float32.
        batch_tokens: Tokens of a usual pass; None is what runs fastest on the device.

    Attributes:
        packed: True: no pass has padding.
        dimension: Numbers in a vector.
        batch_tokens: Tokens of a usual pass.

    Raises:
        UnsupportedArchitectureError: The encoder is of another kind, or a weight is missing.
    """

    packed = True

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        config: Mapping[str, Any],
        *,
        pooling: str,
        device: torch.device,
        dtype: torch.dtype,
        batch_tokens: int | None = None,
    ) -> None:
        self._architecture = architecture = Architecture.of(config)
        self._pooling = pooling
        self.dimension = architecture.hidden
        usual = CUDA_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS
        self.batch_tokens = batch_tokens or usual
        with torch.inference_mode():
            weights = gather_weights(tensors, architecture)
            self._passes = self._open(weights, device, dtype)
        if device.type == "cuda":
            # Passes have streams of their own, and would not wait for the weights in this one.
            torch.cuda.synchronize(device)

    @classmethod
    def load(
        cls,
        files: Iterable[Path],
        config: Mapping[str, Any],
        *,
        pooling: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> TorchEncoder:
        """Return the encoder whose weights are in safetensors files.

        Raises:
            CorruptWeightsError: A file is damaged.
            UnsupportedArchitectureError: The encoder is of another kind, or a weight is missing.
        """
        opened = [SafetensorsFile(path) for path in files]
        tensors = {name: tensor for file in opened for name, tensor in file.tensors.items()}
        encoder = cls(tensors, config, pooling=pooling, device=device, dtype=dtype)
        for file in opened:
            file.forget_pages()
        return encoder

    def forward(self, batch: TokenBatch, out: NDArray[np.float32]) -> None:
        """Write the pooled vectors, not normalised, to `out`, (n, dimension).

        Raises:
            torch.OutOfMemoryError: A CUDA device has too little memory for the pass.
        """
        self._passes.run(inputs_of(batch, self._architecture, self._pooling), out)
        out[batch.lengths <= batch.prompt_tokens] = 0.0

    def warm_up(self, max_length: int) -> None:
        """Do now what the first passes over texts of up to so many tokens would else do."""
        self._passes.warm_up(max_length)

    def trim(self) -> None:
        """Give back memory that is kept only for speed; passes may be running."""
        self._passes.trim()

    def _open(self, weights: EncoderWeights, device: torch.device, dtype: torch.dtype) -> Passes:
        architecture, heads = self._architecture, self._architecture.heads
        is_max = self._pooling == "max"
        if device.type == "cpu":
            return EagerPasses(
                Encoder(weights, architecture, cpu_linear(dtype), device, dtype),
                lambda inputs: RunAttention(runs_of(inputs.lengths), heads),
                device,
                is_max=is_max,
            )
        if has_varlen(device, dtype, architecture.hidden // heads):
            weights = without_residual_biases(weights)
            compute = PackedCompute(
                Encoder(weights, architecture, FusedLinear, device, dtype),
                lambda offsets, longest: VarlenAttention(offsets, longest, heads),
                is_max=is_max,
            )
            tokens, dimension = self.batch_tokens, self.dimension
            return CudaQueues(
                lambda: CudaPasses(CudaStream(device), compute, dimension, tokens), tokens
            )
        return EagerPasses(
            Encoder(weights, architecture, PlainLinear, device, dtype),
            lambda inputs: PaddedAttention(inputs.lengths, heads, device),
            device,
            is_max=is_max,
        )
