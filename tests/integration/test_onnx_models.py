"""The graphs built here, against transformers; graphs of others; and int8."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoConfig, AutoModel

from shared.infrastructure.local_embeddings import (
    LocalEmbeddingConfig,
    ModelBackend,
    Pooling,
    TokenBatch,
    TokenizeOptions,
    UnsupportedModelError,
    open_backend,
)
from shared.infrastructure.resilience import ConfigurationError
from tests.embedding_models import DIMENSION, HARD, MAX_LENGTH, MINILM, save_encoder
from tests.onnx_graphs import save_graph

SIZES = {
    "hidden_size": DIMENSION,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 4000,
    "max_position_embeddings": MAX_LENGTH + 2,
    "initializer_range": 0.3,
}
DISTILBERT = {"dim": DIMENSION, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}
ARCHITECTURES = {
    "albert": {"embedding_size": 16},
    "bert": {},
    "bert-relu": {"hidden_act": "relu"},
    "camembert": {"pad_token_id": 1},
    "distilbert": DISTILBERT,
    "distilbert-relu": DISTILBERT | {"activation": "relu"},
    "electra": {"embedding_size": 16},
    "electra-wide": {"embedding_size": DIMENSION},
    "mpnet": {"pad_token_id": 1},
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1, "hidden_act": "gelu_new"},
}
RNG = np.random.default_rng(0)
TOKENS = TokenBatch.of(
    [
        [101, *RNG.integers(999, 4000, length), 102]
        for length in (0, 1, 5, MAX_LENGTH - 2, 30, MAX_LENGTH - 3)
    ]
)


def open_onnx(root, backend=ModelBackend.ONNX, **options):
    return open_backend(LocalEmbeddingConfig(model_name=str(root), backend=backend, **options))


def forward(backend, tokens=TOKENS):
    out = np.empty((len(tokens), backend.spec.dimension), np.float32)
    backend.forward(tokens, out)
    return out


def text_tokens(backend, texts=HARD):
    return backend.tokenize(texts, TokenizeOptions())


def cosines(one, other):
    products = (one * other).sum(axis=1)
    return products / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def copy_tokenizer(root):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MINILM / name, root)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request, tmp_path_factory):
    """A small encoder of each kind with random weights, and its directory."""
    torch.manual_seed(0)
    kind, _, _ = request.param.partition("-")
    kind = request.param if request.param == "xlm-roberta" else kind
    config = AutoConfig.for_model(kind, **SIZES | ARCHITECTURES[request.param])
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    root = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(root)
    copy_tokenizer(root)
    return model, root


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("pooling", ["cls", "lasttoken", "max", "mean"])
def test_every_architecture_gives_the_vectors_of_transformers(architecture, pooling):
    model, root = architecture
    backend = open_onnx(root, pooling=pooling)
    vectors = []
    for row in range(len(TOKENS)):
        ids = TOKENS.ids[TOKENS.offsets[row] : TOKENS.offsets[row + 1]].astype(np.int64)
        with torch.inference_mode():
            tokens = model(torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
        pools = {"cls": tokens[0], "lasttoken": tokens[-1], "max": tokens.max(axis=0)}
        vectors.append(pools.get(pooling, tokens.mean(axis=0)))
    expected = np.stack(vectors)
    assert np.abs(expected).max() > 0.5
    assert np.abs(forward(backend) - expected).max() <= 1e-5


def test_int8_keeps_the_direction_of_a_vector_and_says_what_it_is():
    exact, quantized = open_onnx(MINILM), open_onnx(MINILM, dtype="int8")
    tokens = text_tokens(exact)
    assert cosines(forward(exact, tokens), forward(quantized, tokens)).min() >= 0.99
    assert (quantized.spec.dtype, quantized.spec.batch_invariant) == ("int8", True)
    assert quantized.spec.fingerprint != exact.spec.fingerprint


def test_int8_gives_a_text_one_vector_whatever_runs_beside_it():
    backend = open_onnx(MINILM, dtype="int8")
    tokens = text_tokens(backend)
    tokens = tokens.select(np.random.default_rng(1).permutation(len(tokens)))
    together = forward(backend, tokens)
    for row in range(len(tokens)):
        alone = forward(backend, tokens.select(np.array([row])))
        assert np.abs(alone[0] - together[row]).max() <= 1e-6


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_threads_share_one_session(encoder, dtype):
    backend = open_onnx(encoder, dtype=dtype, threads=1)
    batches = [TOKENS.select(np.array(rows)) for rows in ([0], [1, 3], [2, 4, 5])] * 20
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda batch: forward(backend, batch), batches))
    for batch, answer in zip(batches, answers, strict=True):
        assert np.array_equal(answer, forward(backend, batch))
    assert backend.spec.concurrent


@pytest.mark.parametrize("kind", [ModelBackend.ONNX, ModelBackend.FASTEMBED])
def test_memory_may_be_given_back_while_passes_run(encoder, tmp_path, kind):
    backend = open_onnx(encoder, kind, cache_dir=tmp_path)
    before = forward(backend)
    with ThreadPoolExecutor(2) as threads:
        passes = [threads.submit(forward, backend) for _ in range(40)]
        for _ in range(10):
            backend.trim()
        assert all(np.array_equal(job.result(), before) for job in passes)
    backend.warm_up()
    assert np.array_equal(forward(backend), before)


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_weights_in_half_precision_are_computed_with_in_float32(tmp_path, stored):
    root = save_encoder(tmp_path)
    AutoModel.from_pretrained(root, dtype=getattr(torch, stored)).save_pretrained(root)
    model = AutoModel.from_pretrained(root, dtype=torch.float32)
    ids = TOKENS.ids[-30:].astype(np.int64)
    with torch.inference_mode():
        tokens = model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
    for dtype, bound in (("float32", 1e-5), ("int8", 0.05)):
        ours = forward(open_onnx(root, dtype=dtype), TokenBatch.of([ids.tolist()]))
        assert np.abs(ours - tokens.mean(axis=0)).max() <= bound


def test_weights_may_lie_in_shards_behind_links(tmp_path):
    """As a hub's cache lays a model out: links to files that are named by their hash."""
    whole = save_encoder(tmp_path / "whole")
    blobs, model = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    AutoModel.from_pretrained(whole).save_pretrained(blobs, max_shard_size="1MB")
    copy_tokenizer(blobs)
    model.mkdir(parents=True)
    for number, file in enumerate(sorted(blobs.iterdir())):
        (model / file.name).symlink_to(file.rename(blobs / f"{number:04}"))
    assert len(list(model.glob("*.safetensors"))) > 1
    for kind in (ModelBackend.ONNX, ModelBackend.FASTEMBED):
        linked = open_onnx(model, kind, cache_dir=tmp_path / "cache")
        assert np.array_equal(forward(linked), forward(open_onnx(whole)))


@pytest.fixture
def other(tmp_path):
    """A model whose architecture is unknown, so that a graph has to come with it."""
    root = save_encoder(tmp_path / "encoder")
    shutil.copytree(root, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "other"}))
    return root, tmp_path / "other"


@pytest.mark.parametrize("external", ["", "weights.bin"])
@pytest.mark.parametrize("kind", [ModelBackend.ONNX, ModelBackend.FASTEMBED])
def test_a_graph_that_came_with_the_model_is_pooled_outside(other, tmp_path, kind, external):
    encoder, root = other
    save_graph(encoder, root / "onnx" / "model.onnx", external=external)
    shipped = open_onnx(root, kind, cache_dir=tmp_path / "cache")
    built = open_onnx(encoder)
    assert np.abs(forward(shipped) - forward(built)).max() <= 1e-6
    assert (shipped.spec.dtype, shipped.spec.batch_invariant) == ("float32", True)
    assert shipped.spec.fingerprint != built.spec.fingerprint
    if external:
        weights = root / "onnx" / external
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
        changed = open_onnx(root, kind, cache_dir=tmp_path / "cache")
        assert changed.spec.fingerprint != shipped.spec.fingerprint


def test_a_graph_may_lie_beside_its_weights_behind_links(other, tmp_path):
    encoder, root = other
    graph = save_graph(encoder, tmp_path / "blobs" / "model.onnx", external="weights.bin")
    (root / "model.onnx").symlink_to(graph.rename(graph.parent / "1"))
    (root / "weights.bin").symlink_to((graph.parent / "weights.bin").rename(graph.parent / "2"))
    assert np.abs(forward(open_onnx(root)) - forward(open_onnx(encoder))).max() <= 1e-6


def test_an_unknown_architecture_without_a_graph_is_refused(other):
    with pytest.raises(UnsupportedModelError, match=r"onnx/model\.onnx"):
        open_onnx(other[1])


def test_a_graph_that_is_not_quantized_is_not_run_as_if_it_were(other):
    encoder, root = other
    save_graph(encoder, root / "model.onnx")
    with pytest.raises(ConfigurationError, match="built here"):
        open_onnx(root, dtype="int8")


def test_a_graph_that_wants_more_than_texts_is_refused(other):
    encoder, root = other
    path = save_graph(encoder, root / "model.onnx")
    model = onnx.load(path)
    shape = ["n", "s"]
    ids = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.INT64, shape)
    model.graph.input.append(ids)
    onnx.save(model, path)
    with pytest.raises(UnsupportedModelError, match="pixels"):
        open_onnx(root)


def test_a_graph_that_pools_inside_is_left_its_pooling(other):
    encoder, root = other
    path = save_graph(encoder, root / "model.onnx")
    model = onnx.load(path)
    (tokens,) = model.graph.output
    pooled = onnx.helper.make_tensor_value_info("pooled", onnx.TensorProto.FLOAT, ["n", DIMENSION])
    reduce = onnx.helper.make_node("ReduceMax", [tokens.name], ["pooled"], axes=[1], keepdims=0)
    model.graph.node.append(reduce)
    model.graph.output.remove(tokens)
    model.graph.output.append(pooled)
    onnx.save(model, path)
    one = TOKENS.select(np.array([3]))
    expected = forward(open_onnx(encoder, pooling=Pooling.MAX), one)
    assert np.abs(forward(open_onnx(root), one) - expected).max() <= 1e-6
    with pytest.raises(UnsupportedModelError, match="pools inside"):
        open_onnx(root, pooling=Pooling.MEAN)
