import json
import threading

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import save_file

from shared.infrastructure.local_embeddings import Pooling, UnsupportedModelError
from shared.infrastructure.local_embeddings.files import ModelFiles
from shared.infrastructure.local_embeddings.onnx_cache import cached_graph
from shared.infrastructure.local_embeddings.onnx_export import main

CONFIG = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "max_position_embeddings": 16,
}


def tensors():
    """The weights of a BERT of one layer, its names behind the prefix of another class."""
    random = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (20, 8),
        "embeddings.position_embeddings.weight": (16, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        "encoder.layer.0.intermediate.dense.weight": (16, 8),
        "encoder.layer.0.intermediate.dense.bias": (16,),
        "encoder.layer.0.output.dense.weight": (8, 16),
        "encoder.layer.0.output.dense.bias": (8,),
        "encoder.layer.0.attention.output.dense.weight": (8, 8),
        "encoder.layer.0.attention.output.dense.bias": (8,),
    }
    for part in ("query", "key", "value"):
        shapes[f"encoder.layer.0.attention.self.{part}.weight"] = (8, 8)
        shapes[f"encoder.layer.0.attention.self.{part}.bias"] = (8,)
    for norm in ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"):
        shapes |= {f"{norm}.LayerNorm.weight": (8,), f"{norm}.LayerNorm.bias": (8,)}
    return {
        f"bert.{name}": random.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture
def tiny(tmp_path):
    root = tmp_path / "tiny"
    root.mkdir()
    (root / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(), root / "model.safetensors")
    return root


def run(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = np.array([[1, 2, 3], [4, 0, 0]])
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def test_a_graph_is_built_once(tiny, tmp_path):
    path = cached_graph(ModelFiles(tiny), Pooling.MEAN, tmp_path / "cache")
    built = path.stat().st_mtime_ns
    assert cached_graph(ModelFiles(tiny), Pooling.MEAN, tmp_path / "cache") == path
    assert path.stat().st_mtime_ns == built
    assert run(path).shape == (2, 8)


def test_other_weights_options_or_pooling_are_another_graph(tiny, tmp_path):
    paths = [cached_graph(ModelFiles(tiny), pooling, tmp_path) for pooling in Pooling]
    (tiny / "config.json").write_text(json.dumps(CONFIG | {"layer_norm_eps": 1e-5}))
    paths.append(cached_graph(ModelFiles(tiny), Pooling.MEAN, tmp_path))
    save_file({name: -array for name, array in tensors().items()}, tiny / "model.safetensors")
    paths.append(cached_graph(ModelFiles(tiny), Pooling.MEAN, tmp_path))
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_copy_is_built_again(tiny, tmp_path, damage):
    path = cached_graph(ModelFiles(tiny), Pooling.MEAN, tmp_path)
    intact = path.read_bytes()
    path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]) if damage is None else damage)
    assert cached_graph(ModelFiles(tiny), Pooling.MEAN, tmp_path) == path
    assert path.read_bytes() == intact


def test_builders_that_race_leave_one_whole_graph_and_nothing_else(tiny, tmp_path):
    cache = tmp_path / "cache"
    together = threading.Barrier(4, timeout=10)
    paths = []

    def build():
        together.wait()
        paths.append(cached_graph(ModelFiles(tiny), Pooling.MEAN, cache))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert sorted(file.suffix for file in (cache / "onnx").iterdir()) == [".onnx", ".sha256"]
    assert run(paths[0]).shape == (2, 8)


def test_the_program_writes_the_graph_where_it_is_told(tiny, tmp_path, capsys):
    out = tmp_path / "out" / "model.onnx"
    assert main([str(tiny), str(out), "--pooling", "cls"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert run(out).shape == (2, 8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "mpnet"}, "onnx/model.onnx"),
        ({"hidden_act": "gelu_new"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_hidden_layers": 2}, "encoder.layer.1"),
    ],
)
def test_what_the_graph_cannot_express_is_refused(tiny, tmp_path, change, reason):
    (tiny / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(UnsupportedModelError, match=reason):
        cached_graph(ModelFiles(tiny), Pooling.MEAN, tmp_path)


def test_a_failed_build_leaves_nothing_behind(tiny, tmp_path):
    (tiny / "config.json").write_text(json.dumps(CONFIG | {"hidden_act": "relu"}))
    with pytest.raises(UnsupportedModelError):
        cached_graph(ModelFiles(tiny), Pooling.MEAN, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
