"""What a local reranker is, and how it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class RerankerConfig(BaseModel, frozen=True, extra="forbid", protected_namespaces=()):
    """What to load and how to run it.

    Attributes:
        model_name: Hub name, model directory, or `package:NAME` of an installed package that
            carries its weights.
        device: `auto` (default), `cpu`, `cuda` or `cuda:N`; `auto` takes CUDA if ONNX Runtime has
            it.
        dtype: Number format of the arithmetic; `float32`, or `int8` on a CPU.
        batch_size: Pairs in one forward pass at most; 32; at least 1.
        max_length: Tokens of a query and a text together that are read, special tokens included;
            None (default) is the model's own; at least 1 more than its special tokens.
        threads: CPU threads of one forward pass; None (default) is the CPUs this process may use;
            at least 1.
        max_batch_tokens: Tokens in one forward pass at most, padding included; None (default) is
            what runs fastest; at least 1. A longer pair runs alone.
        max_concurrent: Calls that take turns on the model; others wait in line; 8; at least 1.
        max_queue: Calls that may wait in line; 64; at least 0.
        model_root: The only place models come from; None (default) is no bound.
        manifest: File of SHA-256 checksums that the model's files must have; None (default) is no
            check.
    """

    model_name: str = Field(min_length=1)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["float32", "int8"] = "float32"
    batch_size: int = Field(default=32, ge=1)
    max_length: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    max_batch_tokens: int | None = Field(default=None, ge=1)
    max_concurrent: int = Field(default=8, ge=1)
    max_queue: int = Field(default=64, ge=0)
    model_root: Path | None = None
    manifest: Path | None = None
