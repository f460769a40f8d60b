"""What a local model is, and how it is run."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

Dtype = Literal["float32", "bfloat16", "float16", "int8"]

DEFAULT_CACHE_DIR = Path("~/.cache/morgan-sdk")


class ModelBackend(enum.StrEnum):
    """The library that runs the model; the vectors of all four agree in float32."""

    SENTENCE_TRANSFORMERS = "sentence_transformers"
    """Runs every sentence-transformers model, Dense modules included; needs torch."""
    TRANSFORMERS = "transformers"
    """The bare encoder under torch; pooling is ours."""
    ONNX = "onnx"
    """ONNX Runtime over a graph built from the weights; no torch; fastest on a CPU."""
    FASTEMBED = "fastembed"
    """The same graph in a session that fastembed opens."""


class Pooling(enum.StrEnum):
    """How the vectors of a text's tokens become one."""

    MEAN = "mean"
    CLS = "cls"
    MAX = "max"
    LAST_TOKEN = "lasttoken"  # noqa: S105 - sentence-transformers' name for it
    MEAN_SQRT_LEN = "mean_sqrt_len_tokens"
    """The sum over the square root of the number of tokens."""
    WEIGHTED_MEAN = "weightedmean"
    """A mean that gives the n-th token n times the weight of the first."""


class Truncation(enum.StrEnum):
    """Which end of a text is dropped if the text is longer than the model reads."""

    END = "end"
    START = "start"
    NONE = "none"
    """Neither: the text is refused."""


@dataclass(frozen=True, slots=True)
class TokenizeOptions:
    """How texts become token ids.

    Attributes:
        prompt: What is put before each text; None is the model's default prompt, mostly nothing.
        truncation: Which end of a text is dropped if it is too long; None is the model's own.
    """

    prompt: str | None = None
    truncation: Truncation | None = None


class LocalEmbeddingConfig(BaseModel, frozen=True, extra="forbid", protected_namespaces=()):
    """What to load and how to run it.

    Attributes:
        model_name: Hub name, model directory, or `package:NAME` of an installed package that
            carries its weights; `sentence-transformers/all-MiniLM-L6-v2`.
        backend: Library that runs it; `SENTENCE_TRANSFORMERS`.
        device: `auto` (default), `cpu`, `cuda` or `cuda:N`; `auto` takes CUDA if the backend has
            it, and `get_info()["device_reason"]` says why.
        batch_size: Texts in one forward pass at most; 32; at least 1. On a GPU, which tokens keep
            busy, it bounds a pass only if it is given.
        max_length: Tokens of a text that are read, special tokens included; None (default) is the
            model's own; at least 1 more than its special tokens, at most its positions.
        normalize: Whether `embed` returns vectors of length 1; True.
        dimensions: First numbers of a vector that `embed` returns, for models trained for it
            (Matryoshka); None (default) is what its authors want, mostly all; at least 1.
        pooling: How token vectors become one; None (default) is the model's own.
        dtype: Number format of weights and arithmetic; `float32`. Half precision needs a torch
            backend; its vectors depend slightly on what else is in the batch. `int8` needs ONNX or
            fastembed and a CPU; its vectors do not.
        threads: CPU threads of one forward pass; None (default) is the CPUs this process may use;
            at least 1.
        max_batch_tokens: Tokens in one forward pass at most, padding included; None (default) is
            what the backend runs fastest with; at least 1. A text longer than this runs alone.
        max_concurrent: Calls that take turns on the model; others wait in line; 8; at least 1.
        max_queue: Calls that may wait in line; None (default) is no bound; at least 0.
        cache_dir: Directory of what calibration measured, and for fastembed of what is written
            while a model loads; None (default) is ~/.cache/morgan-sdk.
        model_root: The only place models come from: `model_name` is then a path relative to it,
            and neither the name nor a link in the model leads out of it; None (default) is no
            bound.
        manifest: File of SHA-256 checksums, as `sha256sum` writes it, that the model's files must
            have before any is read; None (default) is no check.
    """

    model_name: str = Field(default="sentence-transformers/all-MiniLM-L6-v2", min_length=1)
    backend: ModelBackend = ModelBackend.SENTENCE_TRANSFORMERS
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    batch_size: int = Field(default=32, ge=1)
    max_length: int | None = Field(default=None, ge=1)
    normalize: bool = True
    dimensions: int | None = Field(default=None, ge=1)
    pooling: Pooling | None = None
    dtype: Dtype = "float32"
    threads: int | None = Field(default=None, ge=1)
    max_batch_tokens: int | None = Field(default=None, ge=1)
    max_concurrent: int = Field(default=8, ge=1)
    max_queue: int | None = Field(default=None, ge=0)
    cache_dir: Path | None = None
    model_root: Path | None = None
    manifest: Path | None = None
