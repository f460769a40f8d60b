"""How fast float32 could be at most: what matrix products reach on this processor, in each library.

What a run can gain over another is bounded by it: where both libraries multiply at the processor's
peak, only what is not multiplication is left to win.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

# The widest projection of MiniLM, over a pass of 252 tokens.
TOKENS, IN, OUT = 252, 384, 1536
REPEATS, ROUNDS = 20, 9

# Of MiniLM: multiplications and additions of a token's projections, and for each token it attends
# to.
FLOP_PER_TOKEN, FLOP_PER_PAIR = 21.23e6, 9.2e3


def gemm_gflops() -> dict[str, float]:
    """Return the GFLOP/s of one thread, by library."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((TOKENS, IN), "f4"), rng.standard_normal((OUT, IN), "f4")
    torch.set_num_threads(1)
    tensors = torch.from_numpy(x), torch.from_numpy(weight)
    session = _session(weight)
    contenders: dict[str, Callable[[], Any]] = {
        "ONNX Runtime": lambda: session.run(None, {"x": x}),
        "torch": lambda: torch.nn.functional.linear(*tensors),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, multiply in contenders.items():
            began = time.thread_time()
            for _ in range(REPEATS):
                multiply()
            seconds[name].append((time.thread_time() - began) / REPEATS)
    flop = 2 * TOKENS * IN * OUT
    return {name: flop / statistics.median(taken) / 1e9 for name, taken in seconds.items()}


def most_texts_per_second(lengths: Sequence[int], gflops: float, threads: int) -> float:
    """Return how many texts of these lengths, in tokens, there would be time to multiply for."""
    flop = sum(length * (FLOP_PER_TOKEN + FLOP_PER_PAIR * length) for length in lengths)
    return len(lengths) * gflops * 1e9 * threads / flop


def _session(weight: np.ndarray) -> Any:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", IN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", OUT])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
