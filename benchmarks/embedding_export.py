"""Prepare what contenders need, in a process that then ends: `... MODEL TEXTS_JSON DIRECTORY`.

It writes the model as peers take it to `plain`, and the vectors of the texts as
sentence-transformers gives them one at a time, `reference.npy`.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
OUTPUTS = {"last_hidden_state": "model.onnx", "sentence_embedding": "pooled.onnx"}
MAX_LENGTH = 256


class Encoder(torch.nn.Module):
    """The encoder as ONNX graphs of it are published: ids, mask and types in, token vectors out.

    Their mean is a second output.
    """

    def __init__(self, model: Path) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(model, attn_implementation="eager")

    def forward(self, ids: Any, mask: Any, types: Any) -> Any:
        encoded = self.encoder(input_ids=ids, attention_mask=mask, token_type_ids=types)
        tokens, weights = encoded.last_hidden_state, mask.unsqueeze(2).float()
        return tokens, (tokens * weights).sum(1) / weights.sum(1)


def export(model: Path, plain: Path) -> None:
    """Write a graph with token vectors, and one with their mean; peers differ in what they take.

    Graphs are published as torch's older exporter writes them, and ONNX Runtime runs those faster
    than what the newer one writes.
    """
    both = plain / "both.onnx"
    # One tensor for two inputs would make one input of them.
    inputs = tuple(torch.randint(low, 2, (2, 9)) for low in (1, 1, 0))
    torch.onnx.export(
        Encoder(model).eval(),
        inputs,
        both,
        input_names=INPUTS,
        output_names=list(OUTPUTS),
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in INPUTS},
        opset_version=17,
        dynamo=False,
    )
    for output, name in OUTPUTS.items():
        onnx.utils.extract_model(both, plain / name, INPUTS, [output])
    both.unlink()


def lay_out(model: Path, plain: Path) -> None:
    """Copy the small files, without the padding and the cut that a training run left in them."""
    plain.mkdir()
    for name in ("config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(model / name, plain)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (plain / "tokenizer.json").write_text(
        json.dumps(tokenizer | {"truncation": None, "padding": None})
    )
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (plain / "tokenizer_config.json").write_text(
        json.dumps(settings | {"model_max_length": MAX_LENGTH})
    )


def main(model: Path, texts: list[str], directory: Path) -> None:
    plain = directory / "plain"
    lay_out(model, plain)
    export(model, plain)
    # Two threads would wait for each other where others are busy, too.
    torch.set_num_threads(1)
    reference = SentenceTransformer(str(model), device="cpu").encode(
        texts, batch_size=1, show_progress_bar=False
    )
    np.save(directory / "reference.npy", reference)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
