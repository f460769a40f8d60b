import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from shared.infrastructure.local_embeddings.torch_encoder import (
    CorruptWeightsError,
    SafetensorsFile,
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def write(path, header, data=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)
    return path


def entry(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_tensors_are_those_the_library_wrote(tmp_path):
    tensors = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(3.5), "nothing": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "w.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "w.safetensors")
    assert file.tensors.keys() == tensors.keys()
    file.forget_pages()
    for name, expected in tensors.items():
        assert file.tensors[name].dtype == expected.dtype
        assert torch.equal(file.tensors[name], expected)


def test_what_is_written_to_a_tensor_stays_in_this_process(tmp_path):
    path = write(tmp_path / "w", {"a": entry(0, 8)}, struct.pack("<2f", 1, 2))
    before = path.read_bytes()
    tensor = SafetensorsFile(path).tensors["a"]
    tensor.fill_(7)
    assert tensor.tolist() == [7, 7]
    assert path.read_bytes() == before
    assert SafetensorsFile(path).tensors["a"].tolist() == [1, 2]


def test_a_tensor_is_a_view_of_the_file_and_no_copy(tmp_path):
    header = json.dumps({"a": entry(0, 8), "b": entry(8, 16)}).encode()
    path = write(tmp_path / "w", header + b" " * (-len(header) % 8), bytes(16))
    tensors = SafetensorsFile(path).tensors
    assert tensors["b"].data_ptr() - tensors["a"].data_ptr() == 8


def test_a_header_of_any_length_may_come_before_the_data(tmp_path):
    for spaces in range(8):
        header = json.dumps({"a": entry(0, 8)}).encode() + b" " * spaces
        path = write(tmp_path / f"w{spaces}", header, struct.pack("<2f", 1, 2))
        assert SafetensorsFile(path).tensors["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("header", "data"),
    {
        "cut short": ({"a": entry(0, 8)}, bytes(7)),
        "bytes at the end": ({"a": entry(0, 8)}, bytes(9)),
        "an overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        "a gap": ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)),
        "a gap before": ({"a": entry(4, 12)}, bytes(12)),
        "backwards": ({"a": entry(8, 0)}, bytes(8)),
        "another size": ({"a": entry(0, 8, (3,))}, bytes(8)),
        "a negative shape": ({"a": entry(0, 8, (-1, -2))}, bytes(8)),
        "a shape of fractions": ({"a": entry(0, 8, (2.0,))}, bytes(8)),
        "an unknown dtype": ({"a": entry(0, 8, dtype="F8")}, bytes(8)),
        "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        "offsets of text": ({"a": entry("0", "8")}, bytes(8)),
        "one offset": ({"a": {**entry(0, 8), "data_offsets": [0]}}, bytes(8)),
        "no JSON": (b"{a: 1}", b""),
        "a list": ([1], b""),
        "no dictionary inside": ({"a": 1}, b""),
        "no UTF-8": (b'{"\xff": 1}', b""),
        "a name twice": (b'{"a": {}, "a": {}}', b""),
        "nested without end": (b"[" * 100_000, b""),
    }.values(),
)
def test_a_damaged_file_is_a_typed_error(tmp_path, header, data):
    with pytest.raises(CorruptWeightsError, match=r"w\.safetensors"):
        SafetensorsFile(write(tmp_path / "w.safetensors", header, data))


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_without_a_header_is_a_typed_error(tmp_path, size):
    (tmp_path / "w").write_bytes(bytes(size))
    with pytest.raises(CorruptWeightsError):
        SafetensorsFile(tmp_path / "w")


@pytest.mark.parametrize("size", [3, 2**31, 2**63])
def test_a_header_longer_than_the_file_is_never_allocated(tmp_path, size):
    with pytest.raises(CorruptWeightsError, match="header"):
        SafetensorsFile(write(tmp_path / "w", b"{}", size=size))
