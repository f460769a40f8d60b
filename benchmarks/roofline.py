"""What a device reaches at best: a large matrix product, and a large copy."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Roofline:
    """Ceilings of a device, measured.

    Attributes:
        flops: Floating-point operations a second of a matrix product in the dtype.
        bytes: Bytes a second of a copy within the device, reading and writing together.
    """

    flops: float
    bytes: float

    def tokens_per_second(self, flops: float, traffic: float) -> float:
        """Return the ceiling of a model that takes so many operations and bytes a token."""
        return 1 / max(flops / self.flops, traffic / self.bytes)


def measure(device: torch.device, dtype: torch.dtype, *, quick: bool) -> Roofline:
    """Measure both ceilings; takes a few seconds."""
    size = 512 if quick else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty(size, size, device=device, dtype=dtype)
    source = torch.empty(2**22 if quick else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Roofline(
        2 * size**3 / seconds(lambda: torch.mm(a, b, out=product), device),
        2 * source.numel() / seconds(lambda: target.copy_(source), device),
    )


def seconds(work: Callable[[], object], device: torch.device, rounds: int = 7) -> float:
    """Return the median seconds of one of ten runs of `work` after another."""
    for _ in range(3):
        work()
    times: list[float] = []
    for _ in range(rounds):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(10):
            work()
        synchronize(device)
        times.append((time.perf_counter() - began) / 10)
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
