"""Cross-encoders, against transformers."""

import asyncio
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertModel

from services.embedding.reranking import Reranker
from shared.infrastructure.local_embeddings import (
    InvalidTextError,
    LocalReranker,
    RerankerConfig,
    UnsupportedModelError,
)
from tests.embedding_models import DIMENSION, FEW, HARD, MAX_LENGTH, MINILM, TOO_LONG, save_encoder

QUERY = "who jumps over the lazy dog?"
QUERIES = [QUERY, "", "[SEP] 🤗", "far too long " * 400]
FEW_HARD = [*FEW, TOO_LONG[0], "[CLS] [SEP] [MASK] [PAD] ##ing"]
DIFFERENT = HARD[2:5] + HARD[7:10]
SIZES = {
    "hidden_size": DIMENSION,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 30522,
    "max_position_embeddings": MAX_LENGTH + 2,
    "initializer_range": 0.3,
}
KINDS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "bert": {},
    "camembert": {"pad_token_id": 1, "type_vocab_size": 1},
    "distilbert": {"dim": DIMENSION, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "mpnet": {"pad_token_id": 1},
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {"pad_token_id": 1, "type_vocab_size": 1},
}


def copy_tokenizer(root: Path, max_length: int) -> Path:
    for name in ("tokenizer.json", "special_tokens_map.json"):
        shutil.copy(MINILM / name, root)
    config = json.loads((MINILM / "tokenizer_config.json").read_text())
    config["model_max_length"] = max_length
    (root / "tokenizer_config.json").write_text(json.dumps(config))
    return root


def save_cross_encoder(
    root: Path, kind: str = "bert", labels: int = 1, activation: str | None = None
) -> Path:
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, num_labels=labels, **(SIZES | KINDS[kind]))
    if activation:
        config.sentence_transformers = {"activation_fn": activation}
    AutoModelForSequenceClassification.from_config(config).save_pretrained(root)
    return copy_tokenizer(root, MAX_LENGTH)


@pytest.fixture(scope="module")
def minilm_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save MiniLM's weights under a head of random ones."""
    root = tmp_path_factory.mktemp("minilm-head")
    torch.manual_seed(2)
    config = AutoConfig.from_pretrained(MINILM, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config)
    encoder = BertModel.from_pretrained(MINILM, add_pooling_layer=False)
    model.bert.load_state_dict(encoder.state_dict(), strict=False)
    model.classifier.weight.data.normal_(std=0.2)
    model.save_pretrained(root)
    return copy_tokenizer(root, 128)


@functools.cache
def theirs(root: Path) -> tuple[Any, Any]:
    model = AutoModelForSequenceClassification.from_pretrained(root).eval()
    return model, AutoTokenizer.from_pretrained(root)


def logits(root: Path, query: str, texts: list[str]) -> np.ndarray:
    model, tokenizer = theirs(root)
    scores = []
    for text in texts:
        inputs = tokenizer([[query, text]], truncation=True, return_tensors="pt")
        if getattr(model.config, "type_vocab_size", 1) == 1:
            del inputs["token_type_ids"]
        with torch.inference_mode():
            scores.append(model(**inputs).logits.numpy()[0, 0])
    return np.array(scores)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


async def test_scores_agree_with_transformers_and_sentence_transformers(minilm_head: Path) -> None:
    async with LocalReranker(RerankerConfig(model_name=str(minilm_head))) as reranker:
        for query in QUERIES:
            scores = await reranker.rank(query, FEW_HARD)
            expected = logits(minilm_head, query, FEW_HARD)
            assert scores.shape == (len(FEW_HARD),)
            assert scores.dtype == np.float32
            assert np.ptp(expected) > 0.01
            assert np.abs(scores - sigmoid(expected)).max() < 1e-5
        cross_encoder = CrossEncoder(str(minilm_head), device="cpu")
        ours = await reranker.rank(QUERY, FEW_HARD)
        predicted = cross_encoder.predict([(QUERY, text) for text in FEW_HARD])
        assert np.abs(ours - predicted).max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
async def test_every_architecture_has_its_own_head(kind: str, tmp_path: Path) -> None:
    root = save_cross_encoder(tmp_path, kind, activation="torch.nn.modules.linear.Identity")
    async with LocalReranker(RerankerConfig(model_name=str(root))) as reranker:
        scores = await reranker.rank(QUERY, HARD)
    expected = logits(root, QUERY, HARD)
    assert np.ptp(expected) > 0.01
    assert np.abs(scores - expected).max() < 1e-5


async def test_a_score_is_the_same_whatever_is_ranked_beside_it(minilm_head: Path) -> None:
    config = RerankerConfig(model_name=str(minilm_head), batch_size=4)
    async with LocalReranker(config) as reranker:
        together = await reranker.rank(QUERY, FEW_HARD)
        alone = [float((await reranker.rank(QUERY, [text]))[0]) for text in FEW_HARD]
        calls = (reranker.rank(query, FEW_HARD[:5]) for query in (QUERY, "another", QUERY))
        first, other, again = await asyncio.gather(*calls)
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(first - again).max() < 1e-5
    assert np.abs(first - other).max() > 1e-4


@pytest.mark.parametrize(
    ("labels", "message"), [(2, "has 2 labels"), (0, "no classification head")]
)
async def test_a_model_without_one_score_a_pair_is_refused(
    labels: int, message: str, tmp_path: Path
) -> None:
    root = save_cross_encoder(tmp_path, labels=labels) if labels else save_encoder(tmp_path)
    with pytest.raises(UnsupportedModelError, match=message):
        await LocalReranker(RerankerConfig(model_name=str(root))).load()


async def test_code_that_changes_scores_is_never_run(tmp_path: Path) -> None:
    root = save_cross_encoder(tmp_path, activation="their_code.Activation")
    with pytest.raises(UnsupportedModelError, match="their_code"):
        await LocalReranker(RerankerConfig(model_name=str(root))).load()


async def test_what_is_no_text_is_refused(minilm_head: Path) -> None:
    async with LocalReranker(RerankerConfig(model_name=str(minilm_head))) as reranker:
        with pytest.raises(InvalidTextError, match="query"):
            await reranker.rank(7, ["a"])  # type: ignore[arg-type]
        with pytest.raises(InvalidTextError, match="text 1") as caught:
            await reranker.rank(QUERY, ["a", "\ud83d"])
        assert caught.value.index == 1
        assert (await reranker.rank(QUERY, [])).shape == (0,)


async def test_the_service_puts_the_best_first(minilm_head: Path) -> None:
    reranker = Reranker(LocalReranker(RerankerConfig(model_name=str(minilm_head))))
    await reranker.start()
    ranked = await reranker.rerank(QUERY, DIFFERENT)
    scores = sigmoid(logits(minilm_head, QUERY, DIFFERENT))
    assert [index for index, _ in ranked] == np.argsort(-scores).tolist()
    assert [score for _, score in ranked] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert await reranker.rerank(QUERY, DIFFERENT, top_n=2) == ranked[:2]
    snapshot = json.loads(json.dumps(reranker.snapshot()))
    assert snapshot["circuit_breaker"]["state"] == "closed"
    await reranker.stop()
