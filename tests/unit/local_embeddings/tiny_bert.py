"""A BERT of one layer with random weights, written without torch."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "max_position_embeddings": 16,
}


def tensors(layer: str = "encoder.layer.0") -> dict[str, np.ndarray]:
    """Return the weights, their names behind the prefix of another class."""
    random = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (20, 8),
        "embeddings.position_embeddings.weight": (16, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
    }
    projections = {
        **{f"attention.self.{part}": (8, 8) for part in ("query", "key", "value")},
        "attention.output.dense": (8, 8),
        "intermediate.dense": (16, 8),
        "output.dense": (8, 16),
    }
    for name, shape in projections.items():
        shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    for norm in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        shapes |= {f"{norm}.LayerNorm.weight": (8,), f"{norm}.LayerNorm.bias": (8,)}
    return {
        f"bert.{name}": random.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def save_tiny(root: Path, **options: object) -> Path:
    """Save the model with `options` in its configuration."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text(json.dumps(CONFIG | options))
    save_file(tensors(), root / "model.safetensors")
    return root
