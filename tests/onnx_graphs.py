"""ONNX graphs that come with a model."""

from pathlib import Path

import onnx

from shared.infrastructure.local_embeddings import Pooling
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.onnx_encoder.encoder import build_graph


def save_graph(root: Path, path: Path, *, external: str = "") -> Path:
    """Save the graph of a model that gives the vectors of tokens, with its weights.

    Args:
        root: The model.
        path: Where to save it.
        external: File beside it that the weights go to; none by default.
    """
    graph = build_graph(ModelFiles(root), Pooling.MAX)
    model = onnx.load_model_from_string(graph.source)
    onnx.external_data_helper.load_external_data_for_model(model, str(graph.folder))
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"save_as_external_data": True, "location": external}
    onnx.save(model, path, **options if external else {})
    return path
