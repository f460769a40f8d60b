"""Every backend gives the vectors of sentence-transformers, over real weights and small models."""

import asyncio
import json
import shutil

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

from shared.infrastructure.local_embeddings import (
    InvalidTextError,
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    ModelBackend,
    Pooling,
    TextTooLongError,
    TokenBatch,
    TokenizeOptions,
    Truncation,
    UnsupportedModelError,
    open_backend,
)
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from tests.embedding_models import DIMENSION, FEW, HARD, MINILM, TOO_LONG, save_encoder, save_model

TORCH = [ModelBackend.SENTENCE_TRANSFORMERS, ModelBackend.TRANSFORMERS]
BOTH_ENDS = ["one two three " * 40 + "alpha", "beta " + "four five six " * 40, "short"]


@pytest.fixture(scope="module")
def theirs():
    return SentenceTransformer(str(MINILM), device="cpu")


@pytest.fixture(scope="module")
def expected(theirs):
    """What plain sentence-transformers says, one text at a time."""
    return theirs.encode(HARD, batch_size=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=list(ModelBackend))
def model(request, cache):
    model = LocalEmbeddingModel(LocalEmbeddingConfig(backend=request.param, cache_dir=cache))
    asyncio.run(model.load())
    yield model
    asyncio.run(model.unload())


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {kind: save_encoder(root / kind, kind) for kind in ("bert", "xlm-roberta")}


@pytest.fixture
def bert(encoders):
    return encoders["bert"]


@pytest.fixture
def each(cache):
    """Open a model with every backend, one after another."""

    async def each(root):
        for kind in ModelBackend:
            config = LocalEmbeddingConfig(
                model_name=str(root), backend=kind, cache_dir=cache, normalize=False, threads=1
            )
            async with LocalEmbeddingModel(config) as model:
                yield model

    return each


def agree(ours, theirs):
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0.01
    assert np.abs(ours - theirs).max() <= 1e-5


async def test_vectors_agree_with_sentence_transformers(model, expected):
    vectors = await model.embed(HARD)
    agree(vectors, expected)
    assert (vectors * expected).sum(axis=1).min() >= 0.999999


@pytest.mark.parametrize("backend", TORCH)
async def test_half_precision_is_close_and_says_that_it_varies(backend, expected):
    config = LocalEmbeddingConfig(backend=backend, dtype="bfloat16")
    async with LocalEmbeddingModel(config) as model:
        vectors = await model.embed(HARD)
        assert model.get_info()["batch_invariant"] is False
    assert vectors.dtype == np.float32
    assert (vectors * expected).sum(axis=1).min() >= 0.9995


async def test_token_counts_and_truncation_are_those_of_the_model(model, theirs):
    batch = await model.embed_batch(HARD)
    tokens = theirs.tokenizer(HARD, truncation=True)["input_ids"]
    assert batch.token_counts == tuple(map(len, tokens))
    assert [HARD[row] for row, cut in enumerate(batch.truncated) if cut] == TOO_LONG


@pytest.mark.parametrize("dimensions", [1, 100, 384])
async def test_first_dimensions_have_length_one(model, theirs, dimensions):
    vectors = await model.embed(FEW, dimensions=dimensions)
    agree(vectors, theirs.encode(FEW, truncate_dim=dimensions, normalize_embeddings=True))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)


async def test_half_of_a_surrogate_pair_is_refused_by_its_place(model):
    with pytest.raises(InvalidTextError, match="text 1") as caught:
        await model.embed(["fine", "torn \ud83e"])
    assert caught.value.index == 1


async def test_a_long_text_is_refused_if_it_may_not_be_cut(model):
    with pytest.raises(TextTooLongError) as caught:
        await model.embed(["short", TOO_LONG[1]], truncation=Truncation.NONE)
    error = caught.value
    assert (error.index, error.token_count, error.max_length) == (1, 257, 256)


async def test_either_end_of_a_text_may_be_read(model, theirs):
    end = await model.embed(BOTH_ENDS * 3, truncation=Truncation.END)
    assert np.abs(end - await model.embed(BOTH_ENDS * 3)).max() <= 1e-6
    long = [text * 3 for text in BOTH_ENDS]
    start = await model.embed(long, truncation=Truncation.START)
    theirs.tokenizer.truncation_side = "left"
    agree(start, theirs.encode(long, batch_size=1))
    theirs.tokenizer.truncation_side = "right"


def test_backends_that_agree_share_a_fingerprint(cache):
    backends = [
        open_backend(LocalEmbeddingConfig(backend=kind, cache_dir=cache)) for kind in ModelBackend
    ]
    prints = {backend.spec.fingerprint for backend in backends}
    assert len(prints) == 1
    shorter = LocalEmbeddingConfig(backend=ModelBackend.ONNX, cache_dir=cache, max_length=64)
    assert open_backend(shorter).spec.fingerprint not in prints


@pytest.mark.parametrize(
    ("kind", "include_prompt"), [("bert", True), ("bert", False), ("xlm-roberta", True)]
)
@pytest.mark.parametrize("pooling", list(Pooling))
async def test_every_pooling_is_that_of_sentence_transformers(
    each, encoders, tmp_path, pooling, kind, include_prompt
):
    prompts = {"prompts": {"q": "please find: "}, "default_prompt_name": "q"}
    options = {} if include_prompt else prompts
    theirs = save_model(
        tmp_path, encoders[kind], pooling.value, include_prompt=include_prompt, **options
    )
    expected, unprompted = theirs.encode(FEW), theirs.encode(FEW, prompt="")
    async for model in each(tmp_path):
        agree(await model.embed(FEW), expected)
        agree(await model.embed(FEW, prompt=""), unprompted)


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
def test_padding_that_is_written_in_a_text_is_part_of_it(encoders, cache, architecture):
    tokens = TokenBatch.of([[101, 1, 0, 7, 102], [101, 102]])
    vectors = []
    for kind in ModelBackend:
        backend = open_backend(
            LocalEmbeddingConfig(
                model_name=str(encoders[architecture]), backend=kind, cache_dir=cache
            )
        )
        assert backend.spec.max_length == 64
        vectors.append(np.empty((2, DIMENSION), np.float32))
        backend.forward(tokens, vectors[-1])
    for other in vectors[1:]:
        assert np.abs(other - vectors[0]).max() <= 1e-5


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
async def test_a_bare_encoder_is_pooled_as_sentence_transformers_does(each, encoders, kind):
    expected = SentenceTransformer(str(encoders[kind]), device="cpu").encode(FEW)
    async for model in each(encoders[kind]):
        agree(await model.embed(FEW), expected)


async def test_queries_and_documents_have_the_prompts_of_the_model(each, bert, tmp_path):
    prompts = {"query": "query: ", "document": "text to find: ", "other": "other: "}
    theirs = save_model(tmp_path, bert, prompts=prompts, default_prompt_name="other")
    async for model in each(tmp_path):
        agree(await model.embed(FEW), theirs.encode(FEW))
        agree(await model.embed_query(FEW), theirs.encode_query(FEW))
        agree(await model.embed_document(FEW), theirs.encode_document(FEW))
        agree(await model.embed(FEW, prompt_name="query"), theirs.encode(FEW, prompt_name="query"))
        agree(await model.embed(FEW, prompt="so: "), theirs.encode(FEW, prompt="so: "))
        assert model.get_info()["prompts"] == prompts


async def test_a_model_without_prompts_for_them_embeds_queries_as_they_are(each, bert, tmp_path):
    theirs = save_model(tmp_path, bert, prompts={"other": "o: "}, default_prompt_name="other")
    async for model in each(tmp_path):
        agree(await model.embed_query(FEW), theirs.encode_query(FEW))
        agree(await model.embed_document(FEW), theirs.encode_document(FEW))


@pytest.mark.parametrize("side", ["left", "right"])
async def test_the_end_that_is_read_is_the_models_own(each, tmp_path, side):
    encoder = save_encoder(tmp_path / "encoder", truncation_side=side)
    expected = save_model(tmp_path / "model", encoder).encode(BOTH_ENDS)
    async for model in each(tmp_path / "model"):
        agree(await model.embed(BOTH_ENDS), expected)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sentence_bert_config.json", {}),
        ("sentence_bert_config.json", {"max_seq_length": 17}),
        ("sentence_bert_config.json", {"max_seq_length": 17, "do_lower_case": True}),
        ("tokenizer_config.json", {"model_max_length": 23}),
        ("tokenizer_config.json", {"do_lower_case": False}),
        ("tokenizer_config.json", {"tokenize_chinese_chars": False}),
    ],
)
async def test_settings_are_read_as_sentence_transformers_reads_them(each, tmp_path, name, change):
    save_model(tmp_path, save_encoder(tmp_path / "encoder"))
    path = tmp_path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    texts = [*FEW, "UPPER Case And 中文 between", "İstanbul"]
    expected = theirs.encode(texts)
    async for model in each(tmp_path):
        agree(await model.embed(texts), expected)
        assert model.get_info()["max_length"] == theirs.max_seq_length


async def test_a_dense_module_is_run_by_its_library_and_refused_by_the_others(bert, tmp_path):
    theirs = save_model(tmp_path, bert, then=(modules.Dense(32, 16), modules.Normalize()))
    async with LocalEmbeddingModel(LocalEmbeddingConfig(model_name=str(tmp_path))) as model:
        agree(await model.embed(FEW), theirs.encode(FEW))
    for backend in (ModelBackend.TRANSFORMERS, ModelBackend.ONNX, ModelBackend.FASTEMBED):
        config = LocalEmbeddingConfig(model_name=str(tmp_path), backend=backend)
        with pytest.raises(UnsupportedModelError, match="Dense"):
            await LocalEmbeddingModel(config).load()


async def test_code_that_comes_with_a_model_is_never_run(each, bert, tmp_path):
    """A known architecture is run by its library; that the model names code changes nothing."""
    expected = SentenceTransformer(str(bert), device="cpu").encode(FEW)
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    classes = {"AutoConfig": "evil.X", "AutoModel": "evil.X", "AutoTokenizer": ["evil.X"] * 2}
    for name in ("config.json", "tokenizer_config.json"):
        text = json.loads((tmp_path / name).read_text()) | {"auto_map": classes}
        (tmp_path / name).write_text(json.dumps(text))
    async for model in each(tmp_path):
        agree(await model.embed(FEW), expected)
    (tmp_path / "modules.json").write_text('[{"path": "", "type": "evil.X"}]')
    for kind in ModelBackend:
        with pytest.raises(UnsupportedModelError, match="never run"):
            open_backend(LocalEmbeddingConfig(model_name=str(tmp_path), backend=kind))
    assert not (tmp_path / "ran").exists()


def test_a_long_text_costs_no_more_than_its_kept_end(cache):
    backend = open_backend(LocalEmbeddingConfig(backend=ModelBackend.ONNX, cache_dir=cache))
    for truncation in (Truncation.START, Truncation.END):
        batch = backend.tokenize(["word " * 400_000], TokenizeOptions(truncation=truncation))
        assert (batch.lengths.tolist(), batch.truncated.tolist()) == ([256], [True])
    assert ModelFiles(MINILM).max_length == 256
