"""Passes that run operator by operator, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.torch_encoder.attention import Attention
from shared.infrastructure.local_embeddings.torch_encoder.cuda_device import free_cached_memory
from shared.infrastructure.local_embeddings.torch_encoder.encoder import Encoder
from shared.infrastructure.local_embeddings.torch_encoder.inputs import PassInputs
from shared.infrastructure.local_embeddings.torch_encoder.pooling import pool


class Passes(Protocol):
    """Something that runs passes; several threads may use it at once."""

    def run(self, inputs: PassInputs, out: NDArray[np.float32]) -> None:
        """Write the vectors of the texts to `out`, (n, dim).

        Raises:
            torch.OutOfMemoryError: A CUDA device has too little memory for the pass.
        """
        ...

    def warm_up(self, max_length: int) -> None:
        """Get ready for texts of up to so many tokens."""
        ...

    def trim(self) -> None:
        """Give back memory that is kept only for speed."""
        ...


class EagerPasses:
    """Passes in the stream of the thread that asks for them.

    Args:
        encoder: The layers.
        attention: Makes the attention of a pass.
        device: Where the encoder is.
        is_max: Whether the pooling is `max`.
    """

    def __init__(
        self,
        encoder: Encoder,
        attention: Callable[[PassInputs], Attention],
        device: torch.device,
        *,
        is_max: bool,
    ) -> None:
        self._encoder = encoder
        self._attention = attention
        self._device = device
        self._is_max = is_max

    def run(self, inputs: PassInputs, out: NDArray[np.float32]) -> None:
        arrays = (inputs.ids, inputs.positions, inputs.rows, inputs.offsets, inputs.shares)
        with torch.inference_mode():
            ids, positions, rows, offsets, shares = (
                torch.as_tensor(array).to(self._device) for array in arrays
            )
            tokens = self._encoder(ids, positions, self._attention(inputs))
            vectors = pool(tokens, rows, offsets, None if self._is_max else shares)
            torch.as_tensor(out).copy_(vectors[: len(out)])

    def warm_up(self, max_length: int) -> None:
        pass

    def trim(self) -> None:
        if self._device.type == "cuda":
            free_cached_memory()
