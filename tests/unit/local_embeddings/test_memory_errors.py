import errno
import subprocess
import sys

import pytest

from shared.infrastructure.local_embeddings.errors import InferenceError, InvalidTextError
from shared.infrastructure.local_embeddings.memory.out_of_memory import is_out_of_memory

# Each child takes address space until a library cannot have any more, and prints whether what it
# raised was told apart from a plain failure of the same library.
_CHILD = """
import resource
import numpy as np
from shared.infrastructure.local_embeddings.memory.out_of_memory import is_out_of_memory

def leave(size):
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + size, taken + size))

def told(call):
    try:
        call()
    except Exception as exc:
        return is_out_of_memory(exc), f"{type(exc).__name__}: {exc}"
    return "nothing was raised"
"""

_TORCH = """
import torch
torch.set_num_threads(1)
leave(64 << 20)
print(told(lambda: torch.ones(1 << 28)))
print(told(lambda: torch.ones(2) @ torch.ones(3)))
"""

_ONNX = """
import onnxruntime as ort
from onnx import TensorProto, helper

def session(arena):
    nodes = [helper.make_node("Expand", ["one", "shape"], ["wide"]),
             helper.make_node("ReduceSum", ["wide"], ["sum"], keepdims=0)]
    graph = helper.make_graph(nodes, "wide", [
        helper.make_tensor_value_info("one", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [1]),
    ], [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = arena
    return ort.InferenceSession(model.SerializeToString(), options)

def run(session, shape):
    return session.run(None, {"one": np.ones(1, np.float32), "shape": np.array(shape)})

sessions = [session(True), session(False)]
for each in sessions:
    run(each, [4])
leave(64 << 20)
for each in sessions:
    print(told(lambda: run(each, [1 << 28])))
print(told(lambda: run(sessions[0], [-5])))
"""

_NUMPY = """
import mmap
leave(64 << 20)
print(told(lambda: np.ones(1 << 28, np.float32)))
print(told(lambda: mmap.mmap(-1, 1 << 30)))
print(told(lambda: np.ones(2) @ np.ones(3)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space can be limited on Linux")
@pytest.mark.parametrize(
    ("script", "wants"),
    [(_NUMPY, [True, True, False]), (_TORCH, [True, False]), (_ONNX, [True, True, False])],
    ids=["numpy", "torch", "onnxruntime"],
)
def test_what_a_library_really_says_when_memory_runs_out_is_understood(script, wants):
    child = subprocess.run(
        [sys.executable, "-c", _CHILD + script],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    lines = child.stdout.splitlines()
    assert len(lines) == len(wants), child.stderr
    for line, wanted in zip(lines, wants, strict=True):
        assert line.startswith(f"({wanted}, "), line


class TorchLike:
    class OutOfMemoryError(RuntimeError):
        pass


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        TorchLike.OutOfMemoryError("CUDA"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("bad allocation"),
    ],
    ids=str,
)
def test_other_ways_to_say_it_are_understood_also_as_a_cause(error):
    assert is_out_of_memory(error)
    outer = InferenceError("inference failed")
    outer.__cause__ = ValueError("no")
    outer.__cause__.__cause__ = error
    assert is_out_of_memory(outer)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("shape mismatch"),
        OSError(errno.ENOENT, "No such file"),
        RuntimeError("CUDA error: device-side assert triggered"),
        InvalidTextError("text 0 is no valid Unicode: 'out of memory'"),
        KeyboardInterrupt("out of memory"),
    ],
    ids=str,
)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_what_was_being_handled_is_no_cause_and_a_circle_of_causes_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    first.__context__ = MemoryError()
    assert not is_out_of_memory(first)
