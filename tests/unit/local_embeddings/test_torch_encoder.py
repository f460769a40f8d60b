import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer import modules
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

from shared.infrastructure.local_embeddings import (
    LocalEmbeddingConfig,
    ModelBackend,
    Pooling,
    TokenBatch,
    UnsupportedModelError,
    open_backend,
)
from shared.infrastructure.local_embeddings.onnx_encoder.architectures import (
    SUPPORTED_MODEL_TYPES,
)
from shared.infrastructure.local_embeddings.torch_encoder import (
    MODEL_TYPES,
    POOLINGS,
    Architecture,
    TorchEncoder,
    UnsupportedArchitectureError,
)
from shared.infrastructure.local_embeddings.torch_encoder.attention import (
    PaddedAttention,
    RunAttention,
    runs_of,
)
from shared.infrastructure.local_embeddings.torch_encoder.encoder import Encoder
from shared.infrastructure.local_embeddings.torch_encoder.inputs import inputs_of
from shared.infrastructure.local_embeddings.torch_encoder.linear import (
    FusedLinear,
    OneDnnLinear,
    PlainLinear,
    cpu_linear,
)
from shared.infrastructure.local_embeddings.torch_encoder.passes import EagerPasses
from shared.infrastructure.local_embeddings.torch_encoder.weights import (
    gather_weights,
    without_residual_biases,
)
from shared.infrastructure.resilience import ConfigurationError

CPU = torch.device("cpu")
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 128, "vocab_size": 200}
# The second has the ids of padding, 0 and 1, in the middle of a text; two have the same length.
BATCH = TokenBatch.of(
    [[101, *range(2, 40), 102], [101, 1, 0, 7, 102], [101, 9, 8, 7, 102], [101, 102], [5]]
)


def model_of(kind):
    torch.manual_seed(0)
    if kind == "bert":
        model = BertModel(BertConfig(max_position_embeddings=64, **SIZES))
    else:
        model = XLMRobertaModel(
            XLMRobertaConfig(max_position_embeddings=66, pad_token_id=1, **SIZES)
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # they begin as zero, and would hide what is left out
                parameter.normal_(std=0.2)
    return model.eval()


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def model(request):
    return model_of(request.param)


@pytest.fixture(scope="module")
def bert():
    return model_of("bert")


def expected(model, batch, pooling):
    """One text at a time in transformers, pooled by sentence-transformers."""
    pool = modules.Pooling(64, pooling_mode=pooling, include_prompt=not batch.prompt_tokens)
    vectors = []
    for start, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        ids = torch.tensor(batch.ids[None, start:end], dtype=torch.int64)
        with torch.inference_mode():
            tokens = model(input_ids=ids).last_hidden_state
            features = {"token_embeddings": tokens, "attention_mask": torch.ones_like(ids)}
            features["prompt_length"] = batch.prompt_tokens
            vectors.append(pool(features)["sentence_embedding"][0].float().numpy())
    return np.array(vectors)


def encoder_of(model, pooling="mean", dtype=torch.float32):
    return TorchEncoder(
        model.state_dict(), model.config.to_dict(), pooling=pooling, device=CPU, dtype=dtype
    )


def run(runner, batch):
    out = np.full((len(batch), 64), np.nan, np.float32)
    runner.forward(batch, out)
    return out


def likeness(a, b):
    return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_transformers_and_sentence_transformers(model, pooling):
    vectors = run(encoder_of(model, pooling), BATCH)
    assert np.abs(vectors - expected(model, BATCH, pooling)).max() <= 1e-5
    assert np.abs(vectors).max() > 0.1


@pytest.mark.parametrize("pooling", POOLINGS)
def test_prompt_tokens_are_left_out_of_the_pooling(bert, pooling):
    batch = TokenBatch(BATCH.ids, BATCH.offsets, BATCH.truncated, prompt_tokens=2)
    vectors = run(encoder_of(bert, pooling), batch)
    # Of a text that is nothing but its prompt, no token is left.
    assert not vectors[3:].any()
    assert np.abs(vectors[:3] - expected(bert, batch, pooling)[:3]).max() <= 1e-5


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_of_ours_has_the_name_it_has_in_the_config(pooling):
    assert Pooling(pooling) == pooling
    assert len(POOLINGS) == len(Pooling)


@pytest.mark.parametrize(
    ("dtype", "least"), [(torch.bfloat16, 0.9995), (torch.float16, 0.99999)], ids=str
)
def test_half_precision_is_close(model, dtype, least):
    vectors = run(encoder_of(model, dtype=dtype), BATCH)
    assert likeness(vectors, expected(model, BATCH, "mean")) >= least


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_text_has_one_vector_whatever_runs_beside_it(model, dtype):
    encoder = encoder_of(model, dtype=dtype)
    together = run(encoder, BATCH)
    alone = [run(encoder, BATCH.select(np.array([row]))) for row in range(len(BATCH))]
    assert np.abs(together - np.concatenate(alone)).max() <= 1e-5
    backwards = run(encoder, BATCH.select(np.arange(len(BATCH))[::-1]))
    assert np.abs(together - backwards[::-1]).max() <= 1e-5


def test_a_text_without_tokens_is_zero(bert):
    batch = TokenBatch.of([[], [101, 7, 102], []])
    vectors = run(encoder_of(bert), batch)
    assert not vectors[[0, 2]].any()
    assert np.abs(vectors[1:2] - run(encoder_of(bert), batch.select(np.array([1])))).max() <= 1e-6


def test_threads_share_one_copy_of_the_weights(bert):
    encoder = encoder_of(bert)
    rng = np.random.default_rng(0)
    batches = [
        TokenBatch.of([rng.integers(2, 200, length).tolist() for length in rng.integers(1, 60, 5)])
        for _ in range(40)
    ]
    one_by_one = [run(encoder, batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(lambda batch: run(encoder, batch), batches))
    for a, b in zip(one_by_one, at_once, strict=True):
        assert np.abs(a - b).max() <= 1e-6


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("linear", [PlainLinear, FusedLinear, OneDnnLinear])
@pytest.mark.parametrize("attention", ["runs", "padded"])
def test_every_kind_of_projection_and_attention_gives_the_same(bert, linear, attention, folded):
    architecture = Architecture.of(bert.config.to_dict())
    weights = gather_weights(bert.state_dict(), architecture)
    if folded:
        weights = without_residual_biases(weights)
    kinds = {
        "runs": lambda inputs: RunAttention(runs_of(inputs.lengths), 4),
        "padded": lambda inputs: PaddedAttention(inputs.lengths, 4, CPU),
    }
    with torch.inference_mode():
        encoder = Encoder(weights, architecture, linear, CPU, torch.float32)
    passes = EagerPasses(encoder, kinds[attention], CPU, is_max=False)
    out = np.empty((len(BATCH), 64), np.float32)
    passes.run(inputs_of(BATCH, architecture, "mean"), out)
    assert np.abs(out - expected(bert, BATCH, "mean")).max() <= 1e-5


def test_where_onednn_is_not_there_torchs_own_operators_run(monkeypatch, bert):
    assert cpu_linear(torch.float32) is OneDnnLinear

    def missing(*_):
        raise AttributeError("no such operator")

    monkeypatch.setattr(OneDnnLinear, "__init__", missing)
    assert cpu_linear(torch.float32) is PlainLinear
    vectors = run(encoder_of(bert), BATCH)
    assert np.abs(vectors - expected(bert, BATCH, "mean")).max() <= 1e-5


def test_an_operator_that_computes_something_else_is_not_used(monkeypatch):
    plain = OneDnnLinear.gelu
    monkeypatch.setattr(OneDnnLinear, "gelu", lambda self, x: plain(self, x) + 1)
    assert cpu_linear(torch.float32) is PlainLinear


def test_runs_are_neighbours_of_one_length():
    lengths = np.array([3, 3, 5, 0, 5, 2, 2, 2])
    runs = [(0, 2, 3), (6, 1, 5), (11, 1, 5), (16, 3, 2)]
    assert runs_of(lengths) == runs
    assert runs_of(np.array([], np.int64)) == []


def test_what_runs_here_runs_in_onnx_runtime_as_well():
    assert set(MODEL_TYPES) <= set(SUPPORTED_MODEL_TYPES)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "distilbert"},
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
    ],
)
def test_an_option_that_is_not_expressed_is_refused(bert, change):
    config = bert.config.to_dict() | change
    assert not Architecture.supports(config)
    with pytest.raises(UnsupportedArchitectureError, match=str(*change.values())):
        Architecture.of(config)


@pytest.fixture
def saved(bert, minilm, tmp_path):
    """A small model with the tokenizer of a real one."""
    bert.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(minilm / name, tmp_path)
    return tmp_path


def backend_of(root, **options):
    options = {"backend": ModelBackend.TRANSFORMERS, "model_name": str(root)} | options
    return open_backend(LocalEmbeddingConfig(**options))


def test_a_backend_runs_it_packed_and_transformers_runs_the_rest(saved):
    backend = backend_of(saved)
    assert (backend.spec.packed, backend.spec.concurrent) == (True, True)
    backend.warm_up()
    backend.trim()
    ours = run(backend, BATCH)
    backend.close()

    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu_new"}))
    other = backend_of(saved)
    assert other.spec.packed is False
    assert 1e-7 < np.abs(run(other, BATCH) - ours).max() < 1e-2


@pytest.mark.parametrize("pooling", list(Pooling))
def test_a_model_that_transformers_runs_is_pooled_alike(saved, pooling):
    ours = run(backend_of(saved, pooling=pooling), BATCH)
    config = json.loads((saved / "config.json").read_text())
    # Of this option nothing follows but that it is not ours to run.
    (saved / "config.json").write_text(json.dumps(config | {"is_decoder": True}))
    assert backend_of(saved, pooling=pooling).spec.packed is False
    (saved / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu_python"}))
    theirs = backend_of(saved, pooling=pooling)
    assert theirs.spec.packed is False
    assert np.abs(run(theirs, BATCH) - ours).max() <= 1e-5


@pytest.mark.parametrize("backend", [ModelBackend.TRANSFORMERS, ModelBackend.SENTENCE_TRANSFORMERS])
@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_backends_leave_the_prompt_out_of_the_pooling(bert, saved, backend, pooling):
    (saved / "1_Pooling").mkdir()
    options = {"pooling_mode": pooling, "word_embedding_dimension": 64, "include_prompt": False}
    (saved / "1_Pooling" / "config.json").write_text(json.dumps(options))
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    entries = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(kinds.items())
    ]
    (saved / "modules.json").write_text(json.dumps(entries))
    batch = TokenBatch(BATCH.ids, BATCH.offsets, BATCH.truncated, prompt_tokens=2)
    vectors = run(backend_of(saved, backend=backend), batch)
    assert np.abs(vectors[:3] - expected(bert, batch, pooling)[:3]).max() <= 1e-5
    assert not vectors[3:].any()


@pytest.mark.parametrize("backend", [ModelBackend.TRANSFORMERS, ModelBackend.SENTENCE_TRANSFORMERS])
def test_int8_says_what_to_use_instead(saved, backend):
    with pytest.raises(ConfigurationError, match="ONNX"):
        backend_of(saved, backend=backend, dtype="int8")


def test_weights_that_are_not_there_are_named(saved, bert):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(UnsupportedModelError, match=r"encoder\.layer\.3"):
        backend_of(saved)


def test_threads_of_a_pass_are_those_of_the_config_on_every_thread(saved):
    backend = backend_of(saved, threads=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run(backend, BATCH)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


BARE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "safetensors", "tokenizers", "transformers"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from shared.infrastructure.local_embeddings.torch_encoder import TorchEncoder
print(TorchEncoder.__name__)
"""


def test_it_needs_nothing_but_torch_and_numpy():
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "TorchEncoder", done.stderr
