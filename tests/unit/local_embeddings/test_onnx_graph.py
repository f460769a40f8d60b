import json

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import save_file

from shared.infrastructure.local_embeddings import Pooling, UnsupportedModelError
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.onnx_encoder import int8
from shared.infrastructure.local_embeddings.onnx_encoder.encoder import build_graph
from shared.infrastructure.local_embeddings.onnx_encoder.relative_positions import buckets
from tests.unit.local_embeddings.tiny_bert import save_tiny, tensors

IDS = np.array([[1, 2, 3], [4, 0, 0]])
MASK = np.array([[1, 1, 1], [1, 0, 0]])


def build(root, pooling=Pooling.MAX, **options):
    return build_graph(ModelFiles(root), pooling, **options)


def run(graph, **feeds):
    options = onnxruntime.SessionOptions()
    folder = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(folder, str(graph.folder))
    session = onnxruntime.InferenceSession(
        graph.source, options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"input_ids": IDS, "attention_mask": MASK} | feeds)[0]


def test_a_graph_has_no_weights_of_its_own(tmp_path):
    graph = build(save_tiny(tmp_path))
    model = onnx.load_model_from_string(graph.source)
    external = {tensor.name for tensor in model.graph.initializer if tensor.external_data}
    assert external == {name.removeprefix("bert.") for name in tensors()}
    assert graph.files == {"model.safetensors"}
    assert graph.folder == tmp_path


def test_the_pooling_inside_is_the_pooling_outside(tmp_path):
    root = save_tiny(tmp_path)
    tokens = run(build(root))
    assert tokens.shape == (2, 3, 8)
    shares = np.array([[0.5, 0.25, 0.25], [1, 0, 0]], np.float32)
    pooled = run(build(root, Pooling.MEAN), token_shares=shares)
    assert np.abs(pooled - (shares[:, None] @ tokens)[:, 0]).max() <= 1e-6
    for pooling, places in ((Pooling.CLS, [0, 0]), (Pooling.LAST_TOKEN, [2, 0])):
        picked = run(build(root, pooling), pooled_token=np.array(places))
        assert np.abs(picked - tokens[[0, 1], places]).max() <= 1e-6


@pytest.mark.parametrize("stored", [np.float16, np.float32])
@pytest.mark.parametrize("padding", ["", "x"])
def test_weights_are_read_where_they_lie(tmp_path, stored, padding):
    """Half precision becomes single; and a header of odd length puts all out of line."""
    root = save_tiny(tmp_path)
    weights = {name: array.astype(stored) for name, array in tensors().items()}
    save_file({name: array.astype(np.float32) for name, array in weights.items()}, root / "f32")
    (root / "f32").rename(root / "model.safetensors")
    expected = run(build(root))
    file = root / "model.safetensors"
    save_file(weights, file)
    if padding:
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + length].rstrip()
        header += b" " * (1 - len(header) % 2)
        file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
        assert not build(root).files
    assert np.abs(run(build(root)) - expected).max() <= 1e-6


def test_a_graph_is_placed_with_its_weights(tmp_path, monkeypatch):
    root = save_tiny(tmp_path / "model")
    graph = build(root)
    for name in ("linked", "copied"):
        directory = tmp_path / name
        directory.mkdir()
        graph.place(directory / "model.onnx")
        weights = directory / "model.safetensors"
        assert weights.samefile(root / "model.safetensors") == (name == "linked")
        session = onnxruntime.InferenceSession(
            directory / "model.onnx", providers=["CPUExecutionProvider"]
        )
        (tokens,) = session.run(None, {"input_ids": IDS, "attention_mask": MASK})
        assert np.array_equal(tokens, run(graph))

        def refuse(*_: object) -> None:
            raise OSError("another file system")

        monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "modernbert"}, "onnx/model.onnx"),
        ({"hidden_act": "silu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_hidden_layers": 2}, "encoder.layer.1"),
    ],
)
def test_what_the_graph_cannot_express_is_refused(tmp_path, change, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        build(save_tiny(tmp_path, **change))


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_damaged_weights_are_refused(tmp_path, damage):
    file = save_tiny(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] if damage is None else damage)
    with pytest.raises(UnsupportedModelError, match="no valid safetensors"):
        build(tmp_path)


def test_int8_has_a_scale_for_each_column_and_for_each_token(tmp_path):
    weight = np.array([[1.0, 0.0, -300.0], [-0.5, 0.0, 100.0]])
    numbers, scales = int8.quantize_columns(weight)
    assert numbers.tolist() == [[127, 0, -127], [-64, 0, 42]]
    assert np.abs(numbers * scales - weight).max() <= 300 / 127 / 2
    assert int8.is_exact()
    root = save_tiny(tmp_path)
    exact, quantized = run(build(root)), run(build(root, linear=int8.Int8Linear))
    error = np.abs(quantized - exact)[MASK == 1].max()
    assert 0 < error < 0.1 * np.abs(exact).max()


def test_a_large_token_does_not_coarsen_its_neighbours(tmp_path):
    root = save_tiny(tmp_path)
    weights = tensors()
    weights["bert.embeddings.word_embeddings.weight"][5] *= 1e4
    save_file(weights, root / "model.safetensors")
    graph = build(root, linear=int8.Int8Linear)
    beside = run(graph, input_ids=np.array([[1, 2, 3], [5, 5, 5]]), attention_mask=MASK | 1)
    assert np.array_equal(beside[0], run(graph)[0])


def test_distances_between_tokens_are_counted_in_ever_wider_buckets():
    distances = np.array([-300, -128, -127, -20, -8, -7, -1, 0, 1, 7, 8, 20, 127, 128, 300])
    expected = [15, 15, 15, 10, 8, 7, 1, 0, 17, 23, 24, 26, 31, 31, 31]
    assert buckets(distances, 32).tolist() == expected


def test_shards_are_found_under_their_own_names(tmp_path):
    """A shard is found by the graph under the name it has on disk."""
    root = save_tiny(tmp_path)
    weights = tensors()
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, root / shard)
    (root / "model.safetensors").unlink()
    index = {name: shard for shard, held in shards.items() for name in held}
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    whole = build(save_tiny(tmp_path / "whole"))
    assert build(root).files == set(shards)
    assert np.array_equal(run(build(root)), run(whole))
