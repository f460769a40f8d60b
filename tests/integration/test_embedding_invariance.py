"""A text has one vector, whatever runs beside it; and a model that cannot say so says that."""

import random
import shutil

import numpy as np
import pytest
from onnxruntime.quantization import quantize_dynamic

from shared.infrastructure.local_embeddings import (
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    ModelBackend,
    TokenizeOptions,
    open_backend,
)
from tests.embedding_models import HARD, MINILM, save_encoder
from tests.onnx_graphs import save_graph

EXACT = {ModelBackend.ONNX: 1e-6, ModelBackend.FASTEMBED: 1e-6}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=list(ModelBackend))
def backend(request, cache):
    backend = open_backend(LocalEmbeddingConfig(backend=request.param, cache_dir=cache))
    backend.bound = EXACT.get(request.param, 1e-5)
    yield backend
    backend.close()


def forward(backend, texts):
    vectors = np.empty((len(texts), backend.spec.dimension), np.float32)
    backend.forward(backend.tokenize(texts, TokenizeOptions()), vectors)
    return vectors


@pytest.fixture(scope="module")
def alone(backend):
    return np.concatenate([forward(backend, [text]) for text in HARD])


def shuffled(seed):
    order = list(range(len(HARD)))
    random.Random(seed).shuffle(order)
    return order


@pytest.mark.parametrize("seed", range(3))
def test_a_text_has_one_vector_whatever_runs_beside_it(backend, alone, seed):
    order = shuffled(seed)
    together = forward(backend, [HARD[row] for row in order])
    assert np.abs(together - alone[order]).max() <= backend.bound
    assert backend.spec.batch_invariant is True


@pytest.mark.parametrize("longest", [3, 9, 33, 120, 254])
def test_a_text_has_one_vector_whatever_its_padding(backend, alone, longest):
    short = [row for row, text in enumerate(HARD) if len(text) < 60]
    together = forward(backend, [*(HARD[row] for row in short), "word " * longest])
    assert np.abs(together[:-1] - alone[short]).max() <= backend.bound


@pytest.mark.parametrize("copies", [2, 17])
def test_a_text_has_one_vector_however_often_it_is_given(backend, alone, copies):
    row = HARD.index("The quick brown fox jumps over the lazy dog.")
    together = forward(backend, [HARD[row]] * copies)
    assert np.abs(together - alone[row]).max() <= backend.bound


@pytest.mark.parametrize("kind", list(ModelBackend))
async def test_a_text_has_one_vector_however_passes_are_planned(tmp_path, cache, kind):
    encoder = save_encoder(tmp_path)
    seen = []
    for limits in ({}, {"batch_size": 1}, {"batch_size": 3}, {"max_batch_tokens": 100}):
        config = {"model_name": str(encoder), "backend": kind, "cache_dir": cache}
        config |= {"threads": 1} | limits
        async with LocalEmbeddingModel(LocalEmbeddingConfig(**config)) as model:
            seen.append(await model.embed(HARD * 2))
            assert model.get_info()["batch_invariant"] is True
    for other in seen[1:]:
        assert np.abs(other - seen[0]).max() <= 1e-5


@pytest.mark.parametrize("kind", [ModelBackend.SENTENCE_TRANSFORMERS, ModelBackend.TRANSFORMERS])
def test_half_precision_varies_little_and_says_so(kind):
    backend = open_backend(LocalEmbeddingConfig(backend=kind, dtype="bfloat16"))
    apart = np.concatenate([forward(backend, [text]) for text in HARD])
    together = forward(backend, HARD)
    products = (apart * together).sum(axis=1)
    cosines = products / np.linalg.norm(apart, axis=1) / np.linalg.norm(together, axis=1)
    assert cosines.min() >= 0.9995
    assert backend.spec.batch_invariant is False


def test_a_graph_that_quantizes_as_it_goes_is_not_called_batch_invariant(cache, tmp_path):
    root = tmp_path / "model"
    shutil.copytree(MINILM, root, ignore=shutil.ignore_patterns("*.safetensors"))
    graph = save_graph(MINILM, tmp_path / "float32.onnx")
    float32 = {"DefaultTensorType": 1}
    quantize_dynamic(graph, root / "model.onnx", ["MatMul"], extra_options=float32)
    config = LocalEmbeddingConfig(model_name=str(root), backend=ModelBackend.ONNX, cache_dir=cache)
    backend = open_backend(config)
    assert (backend.spec.batch_invariant, backend.spec.dtype) == (False, "int8")
    lone, beside = forward(backend, ["a"]), forward(backend, ["a", HARD[3]])
    assert np.abs(lone[0] - beside[0]).max() > 1e-4  # which is why it is not
