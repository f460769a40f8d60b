"""Passes on a CUDA device: one copy in, one graph, one copy out."""

from __future__ import annotations

import collections
import contextlib
import logging
from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.torch_encoder.attention import Attention
from shared.infrastructure.local_embeddings.torch_encoder.cuda_device import (
    Graph,
    Stream,
    free_cached_memory,
)
from shared.infrastructure.local_embeddings.torch_encoder.encoder import Encoder
from shared.infrastructure.local_embeddings.torch_encoder.inputs import PassInputs
from shared.infrastructure.local_embeddings.torch_encoder.pooling import pool
from shared.infrastructure.local_embeddings.torch_encoder.shapes import Shape, usual_shapes
from shared.infrastructure.local_embeddings.torch_encoder.staging import DeviceInputs, Staging

_logger = logging.getLogger(__name__)

# Passes of a shape after which recording it has paid, and shapes that are kept.
_USES = 4
_GRAPHS = 64

Compute = Callable[[DeviceInputs], torch.Tensor]
"""Inputs to the vectors of the texts, float32 (texts or more, dim); waits for nothing."""


class _Recorded(NamedTuple):
    graph: Graph
    vectors: torch.Tensor


class CudaPasses:
    """One queue of passes; one thread at a time runs it.

    A pass of up to `max_tokens` is padded to a bucket, and a bucket that is used again and again is
    recorded as a graph. A larger pass runs as it is.

    Args:
        stream: Where the passes run.
        compute: The arithmetic.
        dimension: Numbers in a vector.
        max_tokens: Tokens up to which a pass is padded to a bucket.
    """

    def __init__(self, stream: Stream, compute: Compute, dimension: int, max_tokens: int) -> None:
        self._stream = stream
        self._compute = compute
        self._dimension = dimension
        self._max_tokens = max_tokens
        largest = Shape(max_tokens, max_tokens, max_tokens).bucket()
        with stream.current():
            self._staging = Staging(stream, largest)
        self._host_out = stream.host_buffer(0, torch.float32)
        self._recorded: collections.OrderedDict[Shape, _Recorded] = collections.OrderedDict()
        self._uses: collections.Counter[Shape] = collections.Counter()

    def run(self, inputs: PassInputs, out: NDArray[np.float32]) -> None:
        """Write the vectors of the texts to `out`, (n, dim).

        Raises:
            torch.OutOfMemoryError: The device has too little memory for the pass.
        """
        try:
            self._run(inputs, out)
        except BaseException:
            # The next pass would overwrite what is still being copied.
            with contextlib.suppress(RuntimeError):
                self._stream.wait()
            raise

    def _run(self, inputs: PassInputs, out: NDArray[np.float32]) -> None:
        with torch.inference_mode(), self._stream.current():
            exact = Shape.of(inputs.lengths)
            shape = exact.bucket()
            if exact.tokens > self._max_tokens or not self._staging.holds(shape):
                placed = Staging(self._stream, exact).put(inputs, exact)
                self._copy_out(self._compute(placed), out)
                return
            placed = self._staging.put(inputs, shape)
            if recorded := self._recorded.get(shape):
                self._recorded.move_to_end(shape)
                recorded.graph.replay()
                self._copy_out(recorded.vectors, out)
                return
            self._copy_out(self._compute(placed), out)
            self._uses[shape] += 1
            if self._uses[shape] == _USES:
                self._record(shape)

    def record(self, shape: Shape) -> None:
        """Record a bucket now."""
        with torch.inference_mode(), self._stream.current():
            if shape in self._recorded or not self._staging.holds(shape):
                return
            # What the libraries need for a first run, they must not allocate while it is recorded.
            self._compute(self._staging.clear(shape))
            self._record(shape)

    def _record(self, shape: Shape) -> None:
        placed = self._staging.at(shape)
        try:
            graph, vectors = self._stream.capture(lambda: self._compute(placed))
        except RuntimeError as exc:
            # A graph is only for speed. If memory is short, the next pass will say so.
            _logger.warning("no CUDA graph for %s: %s", shape, exc)
            return
        self._recorded[shape] = _Recorded(graph, vectors)
        if len(self._recorded) > _GRAPHS:
            forgotten, _ = self._recorded.popitem(last=False)
            del self._uses[forgotten]

    def _copy_out(self, vectors: torch.Tensor, out: NDArray[np.float32]) -> None:
        if self._host_out.numel() < out.size:
            self._host_out = self._stream.host_buffer(out.size, torch.float32)
        host = self._host_out[: out.size].view(out.shape)
        host.copy_(vectors[: len(out)], non_blocking=True)
        self._stream.wait()
        out[:] = host.numpy()


class PackedCompute:
    """The arithmetic of a pass, which waits for nothing, so that a graph can record it.

    Args:
        encoder: The layers.
        attention: Makes the attention of a pass, of offsets and the longest text's tokens.
        is_max: Whether the pooling is `max`.
    """

    def __init__(
        self,
        encoder: Encoder,
        attention: Callable[[torch.Tensor, int], Attention],
        *,
        is_max: bool,
    ) -> None:
        self._encoder = encoder
        self._attention = attention
        self._is_max = is_max

    def __call__(self, inputs: DeviceInputs) -> torch.Tensor:
        """Return the vectors of the texts, float32 (texts + 1, dim)."""
        attention = self._attention(inputs.offsets, inputs.shape.longest)
        tokens = self._encoder(inputs.ids, inputs.positions, attention)
        return pool(tokens, inputs.rows, inputs.offsets, None if self._is_max else inputs.shares)


class CudaQueues:
    """As many queues as there are threads that run passes at the same time.

    Args:
        open_queue: Makes one.
        batch_tokens: Tokens of a usual pass.
    """

    def __init__(self, open_queue: Callable[[], CudaPasses], batch_tokens: int) -> None:
        self._open_queue = open_queue
        self._batch_tokens = batch_tokens
        # Appending and popping are atomic; the last one used comes first, its graphs are warm.
        self._idle: list[CudaPasses] = []

    def run(self, inputs: PassInputs, out: NDArray[np.float32]) -> None:
        with self._borrowed() as queue:
            queue.run(inputs, out)

    def warm_up(self, max_length: int) -> None:
        with self._borrowed() as queue:
            for shape in usual_shapes(self._batch_tokens, max_length):
                queue.record(shape)

    def trim(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop()
        free_cached_memory()

    @contextlib.contextmanager
    def _borrowed(self) -> Generator[CudaPasses]:
        try:
            queue = self._idle.pop()
        except IndexError:
            queue = self._open_queue()
        try:
            yield queue
        finally:
            self._idle.append(queue)
