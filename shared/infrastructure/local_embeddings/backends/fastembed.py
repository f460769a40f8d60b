"""fastembed's session over the same graph, with our tokenizer, batches and pooling.

Left alone, fastembed reads 512 tokens where the model was trained for 256, and pads a batch in the
order of arrival.
"""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path
from typing import Any, cast

from shared.infrastructure.local_embeddings.backends.onnx import OnnxBackend, Session
from shared.infrastructure.local_embeddings.config import LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.devices import Device, usable_cpus
from shared.infrastructure.local_embeddings.files import ModelFiles
from shared.infrastructure.local_embeddings.optional import require

_GRAPH = "model.onnx"
# fastembed keeps one table of models for the whole process, and refuses a name twice. One entry
# serves all models, since each is opened from a directory of its own.
_MODEL = "morgan-sdk/local"
_registering = threading.Lock()


class FastembedBackend(OnnxBackend):
    """An encoder in a session that fastembed opens; otherwise as `OnnxBackend`."""

    def __init__(self, config: LocalEmbeddingConfig, files: ModelFiles) -> None:
        # Asked for before a graph is built in vain.
        self._library = require("fastembed", extra="fastembed")
        super().__init__(config, files)

    def _open_session(self, graph: Path, device: Device) -> Session:
        text_embedding = self._library.TextEmbedding
        _register_once(text_embedding)
        with tempfile.TemporaryDirectory() as directory:
            self._assemble(Path(directory), graph)
            embedding = text_embedding(
                _MODEL,
                specific_model_path=directory,
                threads=self._config.threads or usable_cpus(),
                cuda=device.is_cuda,
                device_ids=[device.index] if device.is_cuda else None,
            )
        return cast("Session", embedding.model.model)

    def _assemble(self, directory: Path, graph: Path) -> None:
        """Lay out a model the way fastembed expects one; it reads all of it when it opens."""
        (directory / _GRAPH).symlink_to(graph)
        for name in ("config.json", "tokenizer.json", "special_tokens_map.json"):
            if (source := self._files.encoder_dir / name).is_file():
                (directory / name).symlink_to(source)
        settings = self._files.tokenizer_config | {"model_max_length": self._tokenizer.max_length}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _register_once(text_embedding: Any) -> None:
    description = require("fastembed.common.model_description", extra="fastembed")
    with _registering:
        if any(known["model"] == _MODEL for known in text_embedding.list_supported_models()):
            return
        text_embedding.add_custom_model(
            _MODEL,
            pooling=description.PoolingType.DISABLED,
            normalization=False,
            sources=description.ModelSource(url="file:///"),
            dim=1,
            model_file=_GRAPH,
        )
