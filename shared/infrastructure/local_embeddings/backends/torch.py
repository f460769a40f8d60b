"""What the backends under torch share: device, threads, number format, and arrays in and out."""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from shared.infrastructure.local_embeddings.backends.protocol import (
    BackendSpec,
    TransformerBytes,
)
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig, TokenizeOptions
from shared.infrastructure.local_embeddings.devices import choose_device, usable_cpus
from shared.infrastructure.local_embeddings.errors import UnsupportedModelError
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.optional import require
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.local_embeddings.tokens.tokenizer import TextTokenizer
from shared.infrastructure.local_embeddings.vectors import Vectors
from shared.infrastructure.resilience.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

    Encode = Callable[[torch.Tensor, torch.Tensor, TokenBatch], torch.Tensor]
    """Ids and mask (n, s), and the batch they are of, to pooled vectors (n, dim)."""

# What torch and its libraries take beside the tensors of a pass, measured on a CPU.
_OVERHEAD = 1.3
_CPU_BATCH_TOKENS = 1024
_CUDA_BATCH_TOKENS = 16384


class TorchModel(Protocol):
    """A loaded model and its pooling.

    Attributes:
        packed: Whether its passes have no padding.
        dimension: Numbers in a vector.
        batch_tokens: Tokens in one pass that run fastest.
    """

    packed: bool
    dimension: int
    batch_tokens: int

    def forward(self, batch: TokenBatch, out: Vectors) -> None:
        """Write the pooled vectors to `out`."""
        ...

    def warm_up(self, max_length: int) -> None:
        """Do now what the first passes over texts of up to so many tokens would else do."""
        ...

    def trim(self) -> None:
        """Give back memory that is kept only for speed."""
        ...


class TorchBackend(abc.ABC):
    """An encoder under torch.

    Args:
        config: How to run it.
        files: Model directory.

    Raises:
        ConfigurationError: Torch does not compute in the number format.
        UnsupportedModelError: The model has no safetensors, or is more than the backend runs.
        DeviceUnavailableError: A CUDA device was asked for that torch does not see.
    """

    def __init__(self, config: LocalEmbeddingConfig, files: ModelFiles) -> None:
        if config.dtype == "int8":
            raise ConfigurationError(
                f"backend {config.backend} computes in float32, bfloat16 or float16: for int8 use "
                "backend ONNX with a quantized onnx/model.onnx, or bfloat16, which is about as fast"
            )
        self._torch = torch = require("torch", extra="torch")
        self._files = files
        if not files.weights:
            raise UnsupportedModelError(f"{files.root} has no safetensors weights")
        self._tokenizer = TextTokenizer(files, config.max_length)
        device = choose_device(
            config.device, cuda_devices=torch.cuda.device_count(), library="torch"
        )
        self._threads = config.threads or min(usable_cpus(), _torch_threads())
        self._use_threads()
        self._model = self._load(
            config, files, torch.device(device.name), getattr(torch, config.dtype)
        )
        pooling = config.pooling or files.pooling
        self.spec = BackendSpec(
            dimension=self._model.dimension,
            max_length=self._tokenizer.max_length,
            dimensions=files.dimensions,
            pooling=pooling,
            dtype=config.dtype,
            device=device.name,
            device_reason=device.reason,
            # In half precision the kernel that a shape selects shows in the third digit.
            batch_invariant=config.dtype == "float32",
            batch_tokens=self._model.batch_tokens,
            packed=self._model.packed,
            fingerprint=files.fingerprint(
                files.weights_digest, self._tokenizer.max_length, pooling, config.dtype
            ),
            model_path=str(files.root),
            source=files.source,
            prompts=files.prompts,
            default_prompt=files.default_prompt,
            vocabulary=files.vocabulary,
            truncation_side=self._tokenizer.own_side,
            tokenizes_anywhere=True,
            **TransformerBytes.of(files.config, _OVERHEAD)._asdict(),
        )

    def tokenize(self, texts: Sequence[str], options: TokenizeOptions) -> TokenBatch:
        return self._tokenizer(texts, options)

    def forward(self, batch: TokenBatch, out: Vectors) -> None:
        self._use_threads()
        self._model.forward(batch, out)

    def warm_up(self) -> None:
        self._use_threads()
        self._model.warm_up(self.spec.max_length)
        self.forward(TokenBatch.of([[0] * self.spec.max_length]), self._row())

    def trim(self) -> None:
        self._model.trim()

    def close(self) -> None:
        del self._model, self._tokenizer

    def _row(self) -> Vectors:
        return np.empty((1, self.spec.dimension), np.float32)

    def _use_threads(self) -> None:
        # Every thread has a number of its own. And torch counts the CPUs of the host, not those of
        # the container.
        if self._torch.get_num_threads() != self._threads:
            self._torch.set_num_threads(self._threads)

    @abc.abstractmethod
    def _load(
        self,
        config: LocalEmbeddingConfig,
        files: ModelFiles,
        device: torch.device,
        dtype: torch.dtype,
    ) -> TorchModel:
        """Return the model, ready on the device."""


class PaddedModel:
    """A model that takes padded ids and a mask.

    Args:
        encode: The model and its pooling.
        device: Where it runs.
        pad_id: Id of the padding token.
    """

    packed = False

    def __init__(self, encode: Encode, device: torch.device, pad_id: int) -> None:
        self._torch = require("torch", extra="torch")
        self._encode = encode
        self._device = device
        self._pad_id = pad_id
        self.batch_tokens = _CPU_BATCH_TOKENS if device.type == "cpu" else _CUDA_BATCH_TOKENS
        self.dimension = self._run(TokenBatch.of([[pad_id]])).shape[1]

    def forward(self, batch: TokenBatch, out: Vectors) -> None:
        out[:] = self._run(batch)
        out[batch.lengths <= batch.prompt_tokens] = 0.0

    def warm_up(self, max_length: int) -> None:
        pass

    def trim(self) -> None:
        if self._device.type == "cuda":
            room = "shared.infrastructure.local_embeddings.torch_encoder.cuda_device"
            require(room, extra="torch").free_cached_memory()

    def _run(self, batch: TokenBatch) -> Vectors:
        ids, mask = map(self._torch.from_numpy, batch.padded(self._pad_id))
        with self._torch.inference_mode():
            pooled = self._encode(ids.to(self._device), mask.to(self._device), batch)
            vectors: Vectors = pooled.float().cpu().numpy()
        return vectors


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep the libraries from drawing progress bars for files that are on this disk."""
    logging = require("transformers.utils.logging", extra="torch")
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


@functools.cache
def _torch_threads() -> int:
    """Return the threads that torch would use if nobody had told it a number."""
    threads: int = require("torch", extra="torch").get_num_threads()
    return threads
