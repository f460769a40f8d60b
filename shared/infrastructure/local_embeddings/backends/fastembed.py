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
from shared.infrastructure.local_embeddings.config import DEFAULT_CACHE_DIR, LocalEmbeddingConfig
from shared.infrastructure.local_embeddings.devices import Device
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.onnx_encoder.graph import Graph
from shared.infrastructure.local_embeddings.optional import require

_GRAPH = "model.onnx"
# fastembed keeps one table of models for the whole process, and refuses a name twice. One entry
# serves all models, since each is opened from a directory of its own.
_MODEL = "morgan-sdk/local"
_registering = threading.Lock()
# fastembed opens a tokenizer, too, which nobody asks for anything.
_UNUSED = {
    "config.json": {"pad_token_id": 0},
    "tokenizer.json": {"model": {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}},
    "tokenizer_config.json": {"model_max_length": 1, "pad_token": ""},
    "special_tokens_map.json": {},
}


class FastembedBackend(OnnxBackend):
    """An encoder in a session that fastembed opens; otherwise as `OnnxBackend`."""

    def __init__(self, config: LocalEmbeddingConfig, files: ModelFiles) -> None:
        # Asked for before a graph is built in vain.
        self._library = require("fastembed", extra="fastembed")
        super().__init__(config, files)

    def _open_session(self, graph: Graph, device: Device) -> Session:
        text_embedding = self._library.TextEmbedding
        _register_once(text_embedding)
        # Where models are kept, a link to the weights is more likely to do than among other
        # temporary files. All is mapped or read by the time the directory goes.
        cache = (self._config.cache_dir or DEFAULT_CACHE_DIR).expanduser()
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            graph.place(Path(directory, _GRAPH))
            for name, content in _UNUSED.items():
                Path(directory, name).write_text(json.dumps(content), encoding="utf-8")
            embedding = text_embedding(
                _MODEL,
                specific_model_path=directory,
                threads=self._threads,
                cuda=device.is_cuda,
                device_ids=[device.index] if device.is_cuda else None,
            )
        return cast("Session", embedding.model.model)


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
