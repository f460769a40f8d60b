"""BERT encoders with random weights, and who runs them beside ours."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.local_embeddings.torch_encoder import SafetensorsFile

Tensors = dict[str, torch.Tensor]
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Ids and mask (n, s) to vectors (n, dim), on the device."""


@dataclass(frozen=True)
class Model:
    """An encoder to be measured; its pooling is the mean.

    Attributes:
        name: What it is called in the table.
        config: Its `config.json`.
        tensors: Its weights, on the CPU.
    """

    name: str
    config: dict[str, Any]
    tensors: Tensors

    def flops(self, lengths: np.ndarray) -> float:
        """Return the operations of a token of texts of these lengths."""
        hidden, layers, wide = self._sizes()
        linear = 2 * layers * (4 * hidden * hidden + 2 * hidden * wide)
        reached = float((lengths**2).sum() / lengths.sum())  # tokens a token looks at
        return linear + 4 * reached * hidden * layers

    def traffic(self) -> float:
        """Return the bytes of a token in half precision, if every kernel reads and writes once."""
        hidden, layers, wide = self._sizes()
        # Read and written: queries, keys and values 4 and 4 in the attention, 3 in the projection
        # after it, 2 in each normalisation, and the feed-forward's wide vectors twice.
        return 2 * layers * (18 * hidden + 2 * wide)

    def _sizes(self) -> tuple[int, int, int]:
        config = self.config
        return config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]


def random_model(name: str, hidden: int, layers: int, heads: int, vocabulary: int) -> Model:
    """Return an encoder of a shape, with weights as they are before training."""
    wide = 4 * hidden
    config = {
        "model_type": "bert",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": wide,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }
    generator = torch.Generator().manual_seed(0)
    tensors: Tensors = {}

    def matrix(key: str, *shape: int) -> None:
        tensors[f"{key}.weight"] = torch.randn(shape, generator=generator) * 0.04

    def linear(key: str, out: int, into: int) -> None:
        matrix(key, out, into)
        tensors[f"{key}.bias"] = torch.randn(out, generator=generator) * 0.04

    def norm(key: str) -> None:
        tensors[f"{key}.weight"] = 1 + torch.randn(hidden, generator=generator) * 0.04
        tensors[f"{key}.bias"] = torch.randn(hidden, generator=generator) * 0.04

    matrix("embeddings.word_embeddings", vocabulary, hidden)
    matrix("embeddings.position_embeddings", 512, hidden)
    matrix("embeddings.token_type_embeddings", 2, hidden)
    norm("embeddings.LayerNorm")
    for number in range(layers):
        layer = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", wide, hidden)
        linear(f"{layer}.output.dense", hidden, wide)
        norm(f"{layer}.output.LayerNorm")
    return Model(name, config, tensors)


def saved_model(directory: Path) -> Model:
    """Return the encoder in a directory."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    tensors: Tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= SafetensorsFile(path).tensors
    return Model(directory.name, config, tensors)


def sentence_transformers_forward(
    model: Model, device: torch.device, dtype: torch.dtype
) -> Forward | None:
    """Return the model as sentence-transformers runs it; None if it is not installed."""
    try:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415
        from sentence_transformers.models import Pooling  # noqa: PLC0415
        from transformers import AutoConfig, AutoModel  # noqa: PLC0415
    except ImportError:
        return None
    kind = AutoConfig.for_model(model.config["model_type"])
    encoder = AutoModel.from_config(type(kind).from_dict(model.config), dtype=dtype)
    missing = encoder.load_state_dict(model.tensors, strict=False).missing_keys
    assert all(key.startswith(("pooler.", "embeddings.position_ids")) for key in missing), missing

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            ids, mask = features["input_ids"], features["attention_mask"]
            tokens = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            return features | {"token_embeddings": tokens}

    pooling = Pooling(model.config["hidden_size"], pooling_mode="mean")
    whole = SentenceTransformer(modules=[Encoder(), pooling], device=str(device)).eval()
    return lambda ids, mask: whole({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]


def plain_forward(model: Model, device: torch.device, dtype: torch.dtype) -> Forward:
    """Return the model as a plain padded encoder: what torch runs without a library above it."""
    config = model.config
    weights = {key: tensor.to(device, dtype) for key, tensor in model.tensors.items()}
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]

    def linear(x: torch.Tensor, key: str) -> torch.Tensor:
        return functional.linear(x, weights[f"{key}.weight"], weights[f"{key}.bias"])

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        scale, bias = weights[f"{key}.weight"], weights[f"{key}.bias"]
        return functional.layer_norm(x, x.shape[-1:], scale, bias, config["layer_norm_eps"])

    def attention(x: torch.Tensor, mask: torch.Tensor, key: str) -> torch.Tensor:
        parts = (linear(x, f"{key}.{part}") for part in ("query", "key", "value"))
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attended.transpose(1, 2).flatten(2)

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = weights["embeddings.word_embeddings.weight"][ids]
        x = x + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        looked_at = mask.bool()[:, None, None, :]
        for number in range(layers):
            layer = f"encoder.layer.{number}"
            attended = attention(x, looked_at, f"{layer}.attention.self")
            projected = linear(attended, f"{layer}.attention.output.dense")
            x = norm(x + projected, f"{layer}.attention.output.LayerNorm")
            wide = functional.gelu(linear(x, f"{layer}.intermediate.dense"))
            x = norm(x + linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return (x * mask.unsqueeze(2)).sum(1, dtype=torch.float32) / mask.sum(1, keepdim=True)

    return forward


def run_padded(
    forward: Forward, batch: TokenBatch, device: torch.device, rows: int, out: np.ndarray
) -> None:
    """Run a model that takes padded ids over a batch, sorted by length, `rows` texts at a time."""
    order = np.argsort(-batch.lengths, kind="stable")
    with torch.inference_mode():
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            ids, mask = map(torch.from_numpy, batch.select(chosen).padded(0))
            out[chosen] = forward(ids.to(device), mask.to(device)).float().cpu().numpy()
