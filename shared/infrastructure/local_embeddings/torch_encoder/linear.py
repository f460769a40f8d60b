"""Matrix products with what comes after them, in the fewest kernels a device has."""

from __future__ import annotations

import logging
from typing import Protocol, cast

import torch
from torch.nn import functional

from shared.infrastructure.local_embeddings.torch_encoder.weights import Affine

_logger = logging.getLogger(__name__)

# Rows for which oneDNN lays the weights out; other numbers of rows run just as well.
_USUAL_ROWS = 1024


class Linear(Protocol):
    """A projection of tokens, (t, in) to (t, out)."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return `W x + b`."""
        ...

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """Return `gelu(W x + b)`."""
        ...

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return `residual + W x + b`; the residual may be overwritten."""
        ...


class PlainLinear:
    """Torch's own operators; they run anywhere.

    Args:
        affine: Matrix and bias, on the device and in the number format of the tokens.
    """

    def __init__(self, affine: Affine) -> None:
        self._weight, self._bias = affine

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self._weight, self._bias)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(self(x))

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        if self._bias is not None:
            residual = residual.add_(self._bias)
        return residual.addmm_(x, self._weight.t())


class FusedLinear(PlainLinear):
    """For half precision on CUDA: bias and activation run at the end of the matrix product.

    The activation is GELU's approximation by tanh, the one that cuBLAS has: it is off by less than
    the rounding of its result.
    """

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        if self._bias is None:
            return super().gelu(x)
        # The fusion has no public name.
        fused = torch.ops.aten._addmm_activation  # noqa: SLF001
        return cast("torch.Tensor", fused(self._bias, x, self._weight.t(), use_gelu=True))


class OneDnnLinear:
    """oneDNN with weights laid out for this CPU; bias, activation and residual are fused.

    Args:
        affine: Matrix and bias, in the number format of the tokens.
    """

    def __init__(self, affine: Affine) -> None:
        self._operators = torch.ops.mkldnn
        self._weight = self._operators._reorder_linear_weight(  # noqa: SLF001
            affine.weight.contiguous(), _USUAL_ROWS
        )
        self._bias = affine.bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x, "none", "")

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x, "gelu", "none")

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        fused = self._operators._linear_pointwise.binary  # noqa: SLF001
        return cast("torch.Tensor", fused(x, residual, self._weight, self._bias, "add"))

    def _run(self, x: torch.Tensor, activation: str, algorithm: str) -> torch.Tensor:
        fused = self._operators._linear_pointwise  # noqa: SLF001
        result = fused(x, self._weight, self._bias, activation, [], algorithm)
        return cast("torch.Tensor", result)


def cpu_linear(dtype: torch.dtype) -> type[OneDnnLinear | PlainLinear]:
    """Return what runs fastest on this CPU of what this build of torch has.

    The fused operators are torch's own, but it promises nobody to keep them: they are tried.
    """
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        weight, x = (torch.randn(32, 32, generator=generator).div(6).to(dtype) for _ in range(2))
        affine = Affine(weight, weight[0].clone())
        try:
            fused, plain = OneDnnLinear(affine), PlainLinear(affine)
            pairs = [
                (fused(x), plain(x)),
                (fused.gelu(x), plain.gelu(x)),
                (fused.add(x, x.clone()), plain.add(x, x.clone())),
            ]
        except (RuntimeError, AttributeError, NotImplementedError, TypeError) as exc:
            _logger.info("oneDNN's fused operators are not there for %s: %s", dtype, exc)
            return PlainLinear
    agree = all(torch.allclose(a.float(), b.float(), rtol=2e-2, atol=2e-2) for a, b in pairs)
    return OneDnnLinear if agree else PlainLinear
