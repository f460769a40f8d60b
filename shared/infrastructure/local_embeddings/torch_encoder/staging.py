"""The inputs of a pass on their way to a device: one copy for all of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.torch_encoder.cuda_device import Stream
from shared.infrastructure.local_embeddings.torch_encoder.inputs import PassInputs
from shared.infrastructure.local_embeddings.torch_encoder.shapes import Shape


class DeviceInputs(NamedTuple):
    """The inputs of a pass in device memory; see `PassInputs`, and `shape` for the sizes."""

    shape: Shape
    offsets: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    shares: torch.Tensor


class Staging:
    """Memory of the host and of a device for the inputs of one pass after another.

    The inputs of a shape lie at the same place every time, so that a graph may read them.

    Args:
        stream: Where the passes run.
        largest: The largest shape it holds.
    """

    def __init__(self, stream: Stream, largest: Shape) -> None:
        words = _words(largest)
        self._host = stream.host_buffer(words, torch.int32)
        self._device = torch.zeros(words, dtype=torch.int32, device=stream.device)

    def holds(self, shape: Shape) -> bool:
        """Whether there is room for a pass of a shape."""
        return _words(shape) <= len(self._host)

    def put(self, inputs: PassInputs, shape: Shape) -> DeviceInputs:
        """Queue the copy of a pass's inputs, padded to `shape`; the last copy must have ended.

        The padding is texts without tokens at the end, and tokens that belong to no text.
        """
        words = _words(shape)
        offsets, tokens = _parts(self._host[:words].numpy(), shape)
        count = len(inputs.ids)
        offsets[: len(inputs.offsets)] = inputs.offsets
        offsets[len(inputs.offsets) :] = count
        shares = inputs.shares.view(np.int32)
        for row, values in zip(
            tokens, (inputs.ids, inputs.positions, inputs.rows, shares), strict=True
        ):
            row[:count] = values
            row[count:] = 0
        self._device[:words].copy_(self._host[:words], non_blocking=True)
        return self.at(shape)

    def clear(self, shape: Shape) -> DeviceInputs:
        """Queue the inputs of a pass of `shape` without any token."""
        self._device[: _words(shape)].zero_()
        return self.at(shape)

    def at(self, shape: Shape) -> DeviceInputs:
        """Return where the inputs of a shape lie."""
        words = self._device[: _words(shape)]
        offsets, tokens = words[: shape.texts + 1], words[shape.texts + 1 :].view(4, -1)
        return DeviceInputs(
            shape, offsets, tokens[0], tokens[1], tokens[2], tokens[3].view(torch.float32)
        )


def _words(shape: Shape) -> int:
    return shape.texts + 1 + 4 * shape.tokens


def _parts(words: NDArray[np.int32], shape: Shape) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    return words[: shape.texts + 1], words[shape.texts + 1 :].reshape(4, -1)
