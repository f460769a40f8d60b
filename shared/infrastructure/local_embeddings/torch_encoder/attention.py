"""Attention over texts that lie one after another, each looking only at itself.

All kinds map queries, keys and values (t, 3 * hidden) of t tokens to (t, hidden).
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

# FlashAttention computes in half precision, on Ampere and newer, and for heads of these sizes.
_FLASH_CAPABILITY = (8, 0)
_FLASH_HEAD_SIZES = range(8, 257, 8)


def _find_varlen() -> Callable[..., Any] | None:
    try:
        module = importlib.import_module("torch.nn.attention.varlen")
    except ImportError:  # before torch 2.10
        return None
    return getattr(module, "varlen_attn", None)


_varlen_attn = _find_varlen()


class Attention(Protocol):
    """Attention for the texts of one pass."""

    def __call__(self, query_key_value: torch.Tensor) -> torch.Tensor:
        """Return what each token has gathered."""
        ...


class Run(NamedTuple):
    """Neighbouring texts of one length.

    Attributes:
        start: Where their tokens begin.
        texts: How many there are.
        length: Tokens of each.
    """

    start: int
    texts: int
    length: int


def runs_of(lengths: NDArray[np.int64]) -> list[Run]:
    """Return the runs of equal lengths among texts that lie in this order; empty ones are none."""
    changes = np.flatnonzero(np.diff(lengths)) + 1
    starts = np.concatenate([[0], np.cumsum(lengths)])
    bounds = [0, *changes.tolist(), len(lengths)]
    return [
        Run(int(starts[first]), last - first, int(lengths[first]))
        for first, last in itertools.pairwise(bounds)
        if last > first and lengths[first]
    ]


class RunAttention:
    """Neighbouring texts of one length at a time, for a CPU.

    Passes come sorted by length, so there are few runs. None has padding or a mask, and a text's
    result does not depend on the lengths beside it.
    """

    def __init__(self, runs: Sequence[Run], heads: int) -> None:
        self._runs = runs
        self._heads = heads

    def __call__(self, query_key_value: torch.Tensor) -> torch.Tensor:
        size = query_key_value.shape[1] // 3
        parts: list[torch.Tensor] = []
        for start, texts, length in self._runs:
            rows = query_key_value[start : start + texts * length]
            heads = rows.view(texts, length, 3, self._heads, -1).transpose(1, 3)
            query, key, value = heads.unbind(2)
            attended = functional.scaled_dot_product_attention(query, key, value)
            parts.append(attended.transpose(1, 2).reshape(-1, size))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class VarlenAttention:
    """FlashAttention over texts of any lengths, where `has_varlen` says so.

    Args:
        offsets: Where each text begins and the last one ends, int32 (n + 1,), on the device. What
            lies behind the last text is not computed.
        longest: Tokens of the longest text, or more.
        heads: Attention heads.
    """

    def __init__(self, offsets: torch.Tensor, longest: int, heads: int) -> None:
        if _varlen_attn is None:
            raise RuntimeError("this torch has no varlen_attn: it is older than 2.10")
        self._attend = _varlen_attn
        self._offsets = offsets
        self._longest = longest
        self._heads = heads

    def __call__(self, query_key_value: torch.Tensor) -> torch.Tensor:
        tokens, size = query_key_value.shape[0], query_key_value.shape[1] // 3
        query, key, value = query_key_value.view(tokens, 3, self._heads, -1).unbind(1)
        attended: torch.Tensor = self._attend(
            query,
            key,
            value,
            self._offsets,
            self._offsets,
            self._longest,
            self._longest,
        )
        return attended.reshape(tokens, size)


def has_varlen(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether `VarlenAttention` runs on a CUDA device."""
    return (
        _varlen_attn is not None
        and dtype in {torch.float16, torch.bfloat16}
        and head_size in _FLASH_HEAD_SIZES
        and torch.cuda.get_device_capability(device) >= _FLASH_CAPABILITY
    )


class PaddedAttention:
    """Texts padded to the longest, for the attention alone: runs anywhere, on any lengths.

    Args:
        lengths: Tokens of each text, (n,).
        heads: Attention heads.
        device: Where the tokens are.
    """

    def __init__(self, lengths: NDArray[np.int64], heads: int, device: torch.device) -> None:
        longest = int(lengths.max(initial=1))
        starts = np.cumsum(lengths) - lengths
        within = np.arange(longest)
        real: NDArray[np.bool_] = within < lengths[:, None]
        self._shape = (len(lengths), longest, 3, heads, -1)
        source = np.where(real, starts[:, None] + within, 0).ravel()
        self._source = torch.as_tensor(source).to(device)
        self._target = torch.as_tensor(np.flatnonzero(real)).to(device)
        self._mask = torch.as_tensor(real[:, None, None, :]).to(device)

    def __call__(self, query_key_value: torch.Tensor) -> torch.Tensor:
        size = query_key_value.shape[1] // 3
        padded = query_key_value.index_select(0, self._source).view(self._shape)
        query, key, value = padded.transpose(1, 3).unbind(2)
        attended = functional.scaled_dot_product_attention(query, key, value, self._mask)
        return attended.transpose(1, 2).reshape(-1, size).index_select(0, self._target)
