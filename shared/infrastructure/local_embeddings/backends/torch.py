"""What the backends under torch share: device, number format, and arrays in and out."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, cast

from shared.infrastructure.local_embeddings.backends.protocol import BackendSpec
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.devices import choose_device, usable_cpus
from shared.infrastructure.local_embeddings.errors import UnsupportedModelError
from shared.infrastructure.local_embeddings.files import ModelFiles
from shared.infrastructure.local_embeddings.optional import require
from shared.infrastructure.local_embeddings.tokens import TextTokenizer, TokenBatch
from shared.infrastructure.local_embeddings.vectors import Vectors

if TYPE_CHECKING:
    import torch

    Encoder = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_CPU_BATCH_TOKENS = 1024
_CUDA_BATCH_TOKENS = 16384


class TorchBackend(abc.ABC):
    """An encoder under torch.

    Args:
        config: How to run it.
        files: Model directory.

    Raises:
        UnsupportedModelError: The model has no safetensors, or is more than the backend runs.
        DeviceUnavailableError: A CUDA device was asked for that torch does not see.
    """

    def __init__(self, config: LocalEmbeddingConfig, files: ModelFiles) -> None:
        self._torch = torch = require("torch", extra="torch")
        if not files.weights:
            raise UnsupportedModelError(f"{files.root} has no safetensors weights")
        self._tokenizer = TextTokenizer(files, config.max_length)
        device = choose_device(
            config.device, cuda_devices=torch.cuda.device_count(), library="torch"
        )
        self._device = device.name
        # Torch counts the CPUs of the host, not those of the container.
        torch.set_num_threads(config.threads or min(usable_cpus(), torch.get_num_threads()))
        with _quiet():
            self._encode = self._load(config, files, getattr(torch, config.dtype))
        pooling = config.pooling or files.pooling
        self.spec = BackendSpec(
            dimension=self.forward(self.tokenize(["one text"])).shape[1],
            max_length=self._tokenizer.max_length,
            pooling=pooling,
            dtype=config.dtype,
            device=device.name,
            device_reason=device.reason,
            # In half precision the kernel that a shape selects shows in the third digit.
            batch_invariant=config.dtype == "float32",
            batch_tokens=_CUDA_BATCH_TOKENS if device.is_cuda else _CPU_BATCH_TOKENS,
            fingerprint=files.fingerprint(
                files.weights_digest, self._tokenizer.max_length, pooling, config.dtype
            ),
            model_path=str(files.root),
            source=files.source,
            prompts=files.prompts,
        )

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        return self._tokenizer(texts)

    def forward(self, batch: TokenBatch) -> Vectors:
        ids, mask = map(self._torch.from_numpy, batch.padded(self._tokenizer.pad_id))
        with self._torch.inference_mode():
            pooled = self._encode(ids.to(self._device), mask.to(self._device))
            return cast("Vectors", pooled.float().cpu().numpy())

    def close(self) -> None:
        del self._encode, self._tokenizer

    @abc.abstractmethod
    def _load(self, config: LocalEmbeddingConfig, files: ModelFiles, dtype: torch.dtype) -> Encoder:
        """Return the model: ids and mask (n, s) to pooled vectors (n, dim)."""


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep the libraries from drawing progress bars for files that are on this disk."""
    logging = require("transformers.utils.logging", extra="torch")
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
