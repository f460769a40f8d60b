"""ONNX Runtime over a graph built for the weights, or over one that came with the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.backends.protocol import (
    BackendSpec,
    TransformerBytes,
)
from shared.infrastructure.local_embeddings.config import (
    LocalEmbeddingConfig,
    Pooling,
    TokenizeOptions,
)
from shared.infrastructure.local_embeddings.devices import Device, choose_device, usable_cpus
from shared.infrastructure.local_embeddings.errors import (
    DeviceUnavailableError,
    UnsupportedModelError,
)
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.onnx_encoder import int8
from shared.infrastructure.local_embeddings.onnx_encoder.architectures import can_build
from shared.infrastructure.local_embeddings.onnx_encoder.encoder import (
    Float32Linear,
    Linear,
    build_graph,
)
from shared.infrastructure.local_embeddings.onnx_encoder.graph import Graph, GraphBuilder
from shared.infrastructure.local_embeddings.onnx_encoder.shipped import ShippedGraph, read_shipped
from shared.infrastructure.local_embeddings.optional import require
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.local_embeddings.tokens.tokenizer import TextTokenizer
from shared.infrastructure.local_embeddings.vectors import Vectors, pool, token_weights
from shared.infrastructure.resilience.errors import ConfigurationError

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

# What a thread computes in one pass should fit its core's cache.
_CPU_BATCH_TOKENS_PER_THREAD = 256
_CUDA_BATCH_TOKENS = 16384
_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "token_shares", "pooled_token"}


class Session(Protocol):
    """What is used of `onnxruntime.InferenceSession`, which has no types."""

    def run(
        self, output_names: list[str], feeds: Mapping[str, Any], options: Any = None
    ) -> list[Any]: ...
    def get_inputs(self) -> list[Any]: ...
    def get_outputs(self) -> list[Any]: ...
    def get_providers(self) -> list[str]: ...


class Tokenizer(Protocol):
    """What is used of a `TextTokenizer`."""

    max_length: int
    pad_id: int
    own_side: str

    def __call__(self, texts: Sequence[str], options: TokenizeOptions) -> TokenBatch: ...


class OnnxBackend:
    """An encoder in ONNX Runtime.

    The weights stay in the model's files, which are mapped: they must not be written to while the
    model is loaded.

    Args:
        config: How to run it.
        files: Model directory.

    Raises:
        UnsupportedModelError: No graph can be built, and the directory has none that may be run.
        DeviceUnavailableError: CUDA was asked for, and this ONNX Runtime has none; or int8, and
            this processor has no exact arithmetic for it.
        ConfigurationError: The number format is none of this backend's.
    """

    def __init__(self, config: LocalEmbeddingConfig, files: ModelFiles) -> None:
        if config.dtype not in {"float32", "int8"}:
            raise ConfigurationError(
                f"backend {config.backend} computes in float32 or int8: for {config.dtype} use a "
                "torch backend"
            )
        self._config = config
        self._files = files
        self._pooling = files.plain_pooling(config.pooling)
        self._tokenizer = self._open_tokenizer()
        device = _choose_device(config)
        self._shipped = _shipped(config, files)
        graph = self._shipped.graph if self._shipped else self._build(device)
        self._session = self._open_session(graph, device)
        self._inputs = self._check_inputs()
        self._output = self._choose_output()
        self.spec = self._describe(self._actual(device))

    def tokenize(self, texts: Sequence[str], options: TokenizeOptions) -> TokenBatch:
        return self._tokenizer(texts, options)

    def forward(self, batch: TokenBatch, out: Vectors) -> None:
        out[:] = self._run(batch)

    def warm_up(self) -> None:
        longest = min(self.spec.max_length, self.spec.batch_tokens)
        rows = max(1, self.spec.batch_tokens // longest)
        self._run(TokenBatch.of([[self._tokenizer.pad_id] * longest] * rows))

    def trim(self) -> None:
        options = require("onnxruntime", extra="onnx").RunOptions()
        # At the end of this run; the memory of runs that are under way is left alone.
        devices = "cpu:0" if self.spec.device == "cpu" else f"gpu:{self.spec.device[5:]}"
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", devices)
        self._run(TokenBatch.of([[self._tokenizer.pad_id]]), options)

    def close(self) -> None:
        del self._session, self._tokenizer

    def _run(self, batch: TokenBatch, options: Any = None) -> Vectors:
        feeds = self._feeds(batch)
        (output,) = self._session.run([self._output], feeds, options)
        left_out = batch.prompt_tokens
        if output.ndim == 3:
            mask = feeds["attention_mask"]
            return pool(np.asarray(output, np.float32), mask, self._pooling, left_out)
        if left_out:
            output[batch.lengths <= left_out] = 0.0
        return cast("Vectors", output)

    def _feeds(self, batch: TokenBatch) -> dict[str, NDArray[Any]]:
        """Return the inputs of the graph."""
        ids, mask = batch.padded(self._tokenizer.pad_id)
        feeds: dict[str, NDArray[Any]] = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feeds["token_type_ids"] = np.zeros_like(ids)
        left_out = batch.prompt_tokens
        if "pooled_token" in self._inputs:
            first = self._pooling is Pooling.CLS
            place = np.minimum(left_out, batch.lengths - 1) if first else batch.lengths - 1
            feeds["pooled_token"] = place
        if "token_shares" in self._inputs:
            shares = token_weights(batch.lengths, ids.shape[1], self._pooling, left_out)
            feeds["token_shares"] = shares
        return feeds

    def _open_tokenizer(self) -> Tokenizer:
        return TextTokenizer(self._files, self._config.max_length)

    def _build(self, device: Device) -> Graph:
        if self._config.dtype == "float32":
            return self._graph(Float32Linear)
        if device.is_cuda:
            raise DeviceUnavailableError("ONNX graphs in int8 run on a CPU: use device='cpu'")
        if not int8.is_exact():
            raise DeviceUnavailableError(
                "this processor adds up products of bytes with saturation, so that int8 would be "
                "far off: use dtype='float32'"
            )
        return self._graph(int8.Int8Linear)

    def _graph(self, linear: Callable[[GraphBuilder], Linear]) -> Graph:
        return build_graph(self._files, self._pooling, linear)

    def _open_session(self, graph: Graph, device: Device) -> Session:
        ort = require("onnxruntime", extra="onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        # Threads that spin between calls would take the CPU from the event loop and its clients.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(graph.folder)
        )
        # A pattern is kept for every shape there ever was, and passes have all kinds.
        options.enable_mem_pattern = False
        if self._shipped is None:
            # The graph is as it should be; what else is fused may be slower, and other numbers.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        session = ort.InferenceSession(graph.source, options, providers=_providers(device))
        return cast("Session", session)

    @property
    def _threads(self) -> int:
        return self._config.threads or usable_cpus()

    def _check_inputs(self) -> set[str]:
        names = {node.name for node in self._session.get_inputs()}
        if unknown := names - _INPUTS:
            raise UnsupportedModelError(
                f"the graph of {self._files.root} wants inputs that texts do not give: "
                f"{', '.join(sorted(unknown))}"
            )
        return names

    def _choose_output(self) -> str:
        """Return the name of the token vectors, to be pooled here, else of the first output."""
        outputs = self._session.get_outputs()
        tokens = next((node.name for node in outputs if len(node.shape) == 3), None)
        if tokens is None and self._shipped and self._config.pooling:
            raise UnsupportedModelError(
                f"the graph of {self._files.root} pools inside: leave pooling to the model"
            )
        return str(tokens or outputs[0].name)

    def _actual(self, device: Device) -> Device:
        """Return the device the session runs on: it may have fallen back to the CPU."""
        if not device.is_cuda or CUDA in self._session.get_providers():
            return device
        if self._config.device != "auto":
            raise DeviceUnavailableError(
                f"ONNX Runtime could not start its CUDA provider on {device.name}"
            )
        return Device("cpu", "ONNX Runtime could not start its CUDA provider")

    def _describe(self, device: Device) -> BackendSpec:
        files, shipped = self._files, self._shipped
        dtype = shipped.dtype if shipped else self._config.dtype
        numerics = int8.RECIPE if dtype == "int8" and not shipped else dtype
        weights = shipped.digest if shipped else files.weights_digest
        max_length = self._tokenizer.max_length
        per_thread = _CPU_BATCH_TOKENS_PER_THREAD * self._threads
        return BackendSpec(
            dimension=self._run(self.tokenize(["one text"], TokenizeOptions())).shape[1],
            max_length=max_length,
            dimensions=files.dimensions,
            pooling=self._pooling,
            dtype=dtype,
            device=device.name,
            device_reason=device.reason,
            batch_invariant=shipped is None or shipped.batch_invariant,
            batch_tokens=_CUDA_BATCH_TOKENS if device.is_cuda else per_thread,
            fingerprint=files.fingerprint(weights, max_length, self._pooling, numerics),
            model_path=str(files.root),
            source=files.source,
            prompts=files.prompts,
            default_prompt=files.default_prompt,
            vocabulary=files.vocabulary,
            truncation_side=self._tokenizer.own_side,
            tokenizes_anywhere=True,
            **TransformerBytes.of(files.config)._asdict(),
        )


def _shipped(config: LocalEmbeddingConfig, files: ModelFiles) -> ShippedGraph | None:
    """Return the graph that came with the model if it is the one to run."""
    # Weights from safetensors come first: that graph pools inside and is known to agree.
    if can_build(files) or files.onnx_file is None:
        return None
    shipped = read_shipped(files.onnx_file)
    if config.dtype == "int8" and shipped.dtype != "int8":
        raise ConfigurationError(
            f"{files.onnx_file} computes in {shipped.dtype}: int8 needs a graph that is built "
            "here, from safetensors"
        )
    return shipped


def _choose_device(config: LocalEmbeddingConfig) -> Device:
    if config.dtype == "int8" and config.device == "auto":
        return Device("cpu", "int8 runs on a CPU")
    has_cuda = CUDA in require("onnxruntime", extra="onnx").get_available_providers()
    # ONNX Runtime does not count devices: that there are enough shows when the session opens.
    device = choose_device(
        config.device, cuda_devices=64 if has_cuda else 0, library="ONNX Runtime"
    )
    if config.device == "auto":
        has = "has its" if has_cuda else "has no"
        return Device(device.name, f"this ONNX Runtime {has} CUDA provider")
    return device


def _providers(device: Device) -> list[Any]:
    if not device.is_cuda:
        return [CPU]
    options = {
        "device_id": device.index,
        # Chunks of any size, not of doubled ones: a card is shared.
        "arena_extend_strategy": "kSameAsRequested",
        # Ten bits of mantissa are not float32.
        "use_tf32": 0,
    }
    return [(CUDA, options), CPU]
