"""ONNX Runtime over a graph built from the weights, or over one that came with the model."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from shared.infrastructure.local_embeddings.backends.protocol import BackendSpec
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.devices import Device, choose_device, usable_cpus
from shared.infrastructure.local_embeddings.errors import (
    DeviceUnavailableError,
    UnsupportedModelError,
)
from shared.infrastructure.local_embeddings.files import ModelFiles, file_digest
from shared.infrastructure.local_embeddings.onnx_cache import cached_graph
from shared.infrastructure.local_embeddings.onnx_graph import can_build
from shared.infrastructure.local_embeddings.optional import require
from shared.infrastructure.local_embeddings.tokens import TextTokenizer, TokenBatch
from shared.infrastructure.local_embeddings.vectors import Vectors, pool
from shared.infrastructure.resilience.errors import ConfigurationError

_CUDA = "CUDAExecutionProvider"
_CPU_BATCH_TOKENS = 512
_CUDA_BATCH_TOKENS = 16384


class Session(Protocol):
    """What is used of `onnxruntime.InferenceSession`, which has no types."""

    def run(self, output_names: list[str], feeds: dict[str, Any]) -> list[Any]: ...
    def get_inputs(self) -> list[Any]: ...
    def get_outputs(self) -> list[Any]: ...
    def get_providers(self) -> list[str]: ...


class OnnxBackend:
    """An encoder in ONNX Runtime.

    Args:
        config: How to run it.
        files: Model directory.

    Raises:
        UnsupportedModelError: No graph can be built, and the directory has none.
        DeviceUnavailableError: CUDA was asked for, and this ONNX Runtime has none.
    """

    def __init__(self, config: LocalEmbeddingConfig, files: ModelFiles) -> None:
        if config.dtype != "float32":
            raise ConfigurationError(
                f"backend {config.backend} computes in float32: for {config.dtype} use a torch "
                "backend"
            )
        self._config = config
        self._files = files
        self._pooling = files.plain_pooling(config.pooling)
        self._tokenizer = TextTokenizer(files, config.max_length)
        device = _choose_device(config.device)
        # Weights from safetensors come first: that graph pools inside and is known to agree.
        shipped = None if can_build(files) else files.onnx_file
        graph = shipped or cached_graph(files, self._pooling, config.cache_dir)
        self._session = self._open_session(graph, device)
        self._output = self._choose_output(shipped)
        self._wants_types = any(
            node.name == "token_type_ids" for node in self._session.get_inputs()
        )
        self.spec = self._describe(shipped, self._actual(device))

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        return self._tokenizer(texts)

    def forward(self, batch: TokenBatch) -> Vectors:
        ids, mask = batch.padded(self._tokenizer.pad_id)
        feeds = {"input_ids": ids, "attention_mask": mask}
        if self._wants_types:
            feeds["token_type_ids"] = ids * 0
        (output,) = self._session.run([self._output], feeds)
        return pool(output, mask, self._pooling) if output.ndim == 3 else cast("Vectors", output)

    def close(self) -> None:
        del self._session, self._tokenizer

    def _open_session(self, graph: Path, device: Device) -> Session:
        ort = require("onnxruntime", extra="onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._config.threads or usable_cpus()
        # Threads that spin between calls would take the CPU from the event loop and its clients.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        cuda = [(_CUDA, {"device_id": device.index})] if device.is_cuda else []
        session = ort.InferenceSession(
            str(graph), options, providers=[*cuda, "CPUExecutionProvider"]
        )
        return cast("Session", session)

    def _choose_output(self, shipped: Path | None) -> str:
        """Return the name of the token vectors, to be pooled here, else of the first output."""
        outputs = self._session.get_outputs()
        tokens = next((node.name for node in outputs if len(node.shape) == 3), None)
        if tokens is None and shipped and self._config.pooling:
            raise UnsupportedModelError(f"{shipped} pools inside: leave pooling to the model")
        return str(tokens or outputs[0].name)

    def _actual(self, device: Device) -> Device:
        """Return the device the session runs on: it may have fallen back to the CPU."""
        if not device.is_cuda or _CUDA in self._session.get_providers():
            return device
        if self._config.device != "auto":
            raise DeviceUnavailableError(
                f"ONNX Runtime could not start its CUDA provider on {device.name}"
            )
        return Device("cpu", "ONNX Runtime could not start its CUDA provider")

    def _describe(self, shipped: Path | None, device: Device) -> BackendSpec:
        files = self._files
        is_int8 = shipped is not None and _quantizes_as_it_goes(shipped)
        dtype = "int8" if is_int8 else "float32"
        weights = file_digest(shipped) if shipped else files.weights_digest
        max_length = self._tokenizer.max_length
        return BackendSpec(
            dimension=self.forward(self.tokenize(["one text"])).shape[1],
            max_length=max_length,
            pooling=self._pooling,
            dtype=dtype,
            device=device.name,
            device_reason=device.reason,
            batch_invariant=not is_int8,
            batch_tokens=_CUDA_BATCH_TOKENS if device.is_cuda else _CPU_BATCH_TOKENS,
            fingerprint=files.fingerprint(weights, max_length, self._pooling, dtype),
            model_path=str(files.root),
            source=files.source,
            prompts=files.prompts,
        )


def _choose_device(requested: str) -> Device:
    has_cuda = _CUDA in require("onnxruntime", extra="onnx").get_available_providers()
    # ONNX Runtime does not count devices: that there are enough shows when the session opens.
    return choose_device(requested, cuda_devices=64 if has_cuda else 0, library="ONNX Runtime")


def _quantizes_as_it_goes(graph: Path) -> bool:
    """Whether activations are scaled by what is in the batch, so that vectors depend on it."""
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"DynamicQuantize") >= 0
