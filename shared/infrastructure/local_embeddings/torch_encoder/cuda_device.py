"""What a CUDA device does beside arithmetic: streams, pinned memory, graphs."""

from __future__ import annotations

import collections
import contextlib
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Protocol

import torch

# Graphs are captured one at a time, and nothing is given back meanwhile: the allocator forbids it.
_capturing = threading.Lock()

# Torch has 32 streams a device, and gives them out again and again: two owners of one would record
# each other's work.
_free_streams: collections.defaultdict[torch.device, list[torch.cuda.Stream]] = (
    collections.defaultdict(list)
)


class Graph(Protocol):
    """Kernels that were recorded once."""

    def replay(self) -> None:
        """Run them again, on the same memory."""
        ...


class Stream(Protocol):
    """A queue of work on a device."""

    device: torch.device

    def current(self) -> contextlib.AbstractContextManager[None]:
        """Queue here what this thread asks torch for."""
        ...

    def host_buffer(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return host memory (count,) that the device copies from and to by itself."""
        ...

    def capture(self, work: Callable[[], torch.Tensor]) -> tuple[Graph, torch.Tensor]:
        """Record `work`; return it with its result, which each replay overwrites."""
        ...

    def wait(self) -> None:
        """Sleep until all queued work is done."""
        ...


class CudaStream:
    """A stream of its own on one CUDA device.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        free = _free_streams[device]
        self._stream = free.pop() if free else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        weakref.finalize(self, free.append, self._stream)
        # A thread that spins while it waits would take the CPU from the tokenizer.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def current(self) -> Generator[None]:
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    def host_buffer(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(count, dtype=dtype, pin_memory=True)

    def capture(self, work: Callable[[], torch.Tensor]) -> tuple[Graph, torch.Tensor]:
        graph = torch.cuda.CUDAGraph()
        with (
            _capturing,
            torch.cuda.graph(
                graph,
                # One pool for all graphs of the stream: they never run at the same time.
                pool=self._pool,
                stream=self._stream,
                # Other threads go on working with the device.
                capture_error_mode="thread_local",
            ),
        ):
            result = work()
        return graph, result

    def wait(self) -> None:
        self._done.record(self._stream)
        self._done.synchronize()


def free_cached_memory() -> None:
    """Free what the allocator keeps for later; other threads may be working."""
    with _capturing:
        torch.cuda.empty_cache()
