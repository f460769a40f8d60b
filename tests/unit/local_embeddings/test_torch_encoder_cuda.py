"""The CUDA path on a CPU: its arithmetic with a scripted stream, its shapes with fake tensors."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional

from shared.infrastructure.local_embeddings import TokenBatch
from shared.infrastructure.local_embeddings.torch_encoder import Architecture, TorchEncoder
from shared.infrastructure.local_embeddings.torch_encoder import cuda_pass as cuda_pass_module
from shared.infrastructure.local_embeddings.torch_encoder.attention import (
    PaddedAttention,
    VarlenAttention,
    has_varlen,
)
from shared.infrastructure.local_embeddings.torch_encoder.cuda_pass import (
    CudaPasses,
    CudaQueues,
    PackedCompute,
)
from shared.infrastructure.local_embeddings.torch_encoder.encoder import Encoder
from shared.infrastructure.local_embeddings.torch_encoder.inputs import inputs_of
from shared.infrastructure.local_embeddings.torch_encoder.linear import FusedLinear, PlainLinear
from shared.infrastructure.local_embeddings.torch_encoder.shapes import Shape, usual_shapes
from shared.infrastructure.local_embeddings.torch_encoder.staging import DeviceInputs
from shared.infrastructure.local_embeddings.torch_encoder.weights import (
    gather_weights,
    without_residual_biases,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
HIDDEN, HEADS, LAYERS = 32, 4, 2
CONFIG = {"model_type": "bert", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
CONFIG |= {"num_attention_heads": HEADS}
ARCHITECTURE = Architecture.of(CONFIG)
POOLINGS = ("mean", "max")


def checkpoint(device=CPU):
    torch.manual_seed(0)
    sizes = {
        "embeddings.word_embeddings.weight": (90, HIDDEN),
        "embeddings.position_embeddings.weight": (80, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    norms = ["embeddings.LayerNorm"]
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        parts = {f"attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")}
        parts |= {"attention.output.dense": (HIDDEN, HIDDEN)}
        parts |= {"intermediate.dense": (64, HIDDEN), "output.dense": (HIDDEN, 64)}
        for name, size in parts.items():
            sizes |= {f"{layer}.{name}.weight": size, f"{layer}.{name}.bias": size[:1]}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for norm in norms:
        sizes |= {f"{norm}.weight": (HIDDEN,), f"{norm}.bias": (HIDDEN,)}
    return {name: torch.randn(size, device=device) * 0.2 for name, size in sizes.items()}


class OneByOne:
    """What FlashAttention does: nothing for the tokens behind the last text."""

    def __init__(self, offsets, longest):
        self.bounds = offsets.tolist()
        assert np.diff(self.bounds).max(initial=0) <= longest

    def __call__(self, query_key_value):
        out = torch.full((len(query_key_value), HIDDEN), float("nan"))
        heads = query_key_value.view(len(query_key_value), 3, HEADS, -1).permute(1, 2, 0, 3)
        for start, end in zip(self.bounds[:-1], self.bounds[1:], strict=True):
            q, k, v = heads[:, :, start:end]
            if end > start:
                attended = functional.scaled_dot_product_attention(q, k, v)
                out[start:end] = attended.transpose(0, 1).reshape(-1, HIDDEN)
        return out


class ScriptedGraph:
    def __init__(self, work, result):
        self.work, self.result, self.replays = work, result, 0

    def replay(self):
        self.replays += 1
        self.result.copy_(self.work())


class ScriptedStream:
    """A stream on the CPU; a graph runs its work again, on the memory it was recorded with."""

    device = CPU

    def __init__(self):
        self.graphs = []
        self.waits = 0
        self.capture_error = None

    def current(self):
        return contextlib.nullcontext()

    def host_buffer(self, count, dtype):
        # What is left of earlier users, and no valid id.
        return torch.full((count,), -7, dtype=dtype)

    def capture(self, work):
        if self.capture_error:
            raise self.capture_error
        self.graphs.append(ScriptedGraph(work, work()))
        return self.graphs[-1], self.graphs[-1].result

    def wait(self):
        self.waits += 1


def compute_of(pooling="mean"):
    weights = without_residual_biases(gather_weights(checkpoint(), ARCHITECTURE))
    with torch.inference_mode():
        encoder = Encoder(weights, ARCHITECTURE, FusedLinear, CPU, torch.float32)
    return PackedCompute(encoder, OneByOne, is_max=pooling == "max")


def passes_of(stream, compute=None, max_tokens=256):
    return CudaPasses(stream, compute or compute_of(), HIDDEN, max_tokens)


def batch_of(*lengths, seed=0, prompt_tokens=0):
    rng = np.random.default_rng(seed)
    return TokenBatch.of(
        [rng.integers(1, 90, length).tolist() for length in lengths], prompt_tokens=prompt_tokens
    )


def run(passes, batch, pooling="mean"):
    out = np.full((len(batch), HIDDEN), np.nan, np.float32)
    passes.run(inputs_of(batch, ARCHITECTURE, pooling), out)
    return out


def on_cpu(batch, pooling="mean"):
    encoder = TorchEncoder(checkpoint(), CONFIG, pooling=pooling, device=CPU, dtype=torch.float32)
    out = np.empty((len(batch), HIDDEN), np.float32)
    encoder.forward(batch, out)
    return out


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("lengths", [(5,), (40, 40, 7, 1), (64,), (60, 60, 60), (1,) * 70, (7, 0)])
def test_a_padded_bucket_gives_the_vectors_of_the_cpu(lengths, pooling):
    passes = passes_of(ScriptedStream(), compute_of(pooling))
    for seed in range(7):  # eager, recorded, and replayed
        batch = batch_of(*lengths, seed=seed)
        assert np.abs(run(passes, batch, pooling) - on_cpu(batch, pooling)).max() <= 1e-5


def test_the_memory_of_one_pass_does_not_show_in_the_next():
    stream = ScriptedStream()
    passes = passes_of(stream)
    batches = [batch_of(*lengths) for lengths in [(60, 40), (3,), (1, 1, 1), (75, 75, 75), (2, 2)]]
    for batch in batches * 6:
        assert np.abs(run(passes, batch) - on_cpu(batch)).max() <= 1e-5
    assert all(graph.replays for graph in stream.graphs)


def test_a_shape_is_recorded_once_it_has_been_used_a_few_times():
    stream = ScriptedStream()
    passes = passes_of(stream)
    for _ in range(3):
        run(passes, batch_of(9, 9))
    assert not stream.graphs
    for length in (9, 8, 20, 5):  # all of one bucket
        run(passes, batch_of(length, length))
    assert [graph.replays for graph in stream.graphs] == [3]
    assert stream.waits == 7


def test_shapes_that_are_not_used_any_more_make_room(monkeypatch):
    monkeypatch.setattr(cuda_pass_module, "_GRAPHS", 2)
    stream = ScriptedStream()
    passes = passes_of(stream)
    shapes = [Shape(64, texts, 32) for texts in (1, 2, 4)]
    for shape in shapes[:2]:
        passes.record(shape)
    run(passes, batch_of(9))  # the first is used after the second
    passes.record(shapes[2])
    assert [run(passes, batch_of(9)).shape, stream.graphs[0].replays] == [(1, HIDDEN), 2]
    run(passes, batch_of(9, 9))
    assert stream.graphs[1].replays == 0
    passes.record(shapes[0])
    assert len(stream.graphs) == 3


def test_a_pass_beyond_the_largest_bucket_runs_as_it_is():
    stream = ScriptedStream()
    passes = passes_of(stream, max_tokens=64)
    batch = batch_of(70, 70, 3)
    for _ in range(6):
        assert np.abs(run(passes, batch) - on_cpu(batch)).max() <= 1e-5
    assert not stream.graphs


def test_what_cannot_be_recorded_runs_all_the_same(caplog):
    stream = ScriptedStream()
    stream.capture_error = torch.OutOfMemoryError("no memory for a graph")
    passes = passes_of(stream)
    batch = batch_of(9, 9)
    for _ in range(9):
        assert np.abs(run(passes, batch) - on_cpu(batch)).max() <= 1e-5
    assert [record.message for record in caplog.records] == [
        "no CUDA graph for Shape(tokens=64, texts=2, longest=32): no memory for a graph"
    ]


def test_a_pass_that_runs_out_of_memory_says_so_and_the_next_one_runs():
    compute = compute_of()
    errors = [torch.OutOfMemoryError("CUDA out of memory")]

    def short_of_memory(inputs):
        if errors:
            raise errors.pop()
        return compute(inputs)

    queues = CudaQueues(lambda: passes_of(ScriptedStream(), short_of_memory), 256)
    with pytest.raises(torch.OutOfMemoryError):
        run(queues, batch_of(9))
    assert np.abs(run(queues, batch_of(9)) - on_cpu(batch_of(9))).max() <= 1e-5


def test_passes_at_the_same_time_have_queues_of_their_own():
    together = threading.Barrier(2)
    compute = compute_of()
    streams = []

    def meet(inputs):
        together.wait(30)
        return compute(inputs)

    def open_queue():
        streams.append(ScriptedStream())
        return passes_of(streams[-1], meet)

    queues = CudaQueues(open_queue, 256)
    vectors = {}
    threads = [
        threading.Thread(target=lambda n=n: vectors.update({n: run(queues, batch_of(n))}))
        for n in (5, 6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(streams) == 2
    for length, vector in vectors.items():
        assert np.abs(vector - on_cpu(batch_of(length))).max() <= 1e-5


def test_a_queue_is_used_again_and_given_back_by_trim(monkeypatch):
    freed = []
    monkeypatch.setattr(cuda_pass_module, "free_cached_memory", lambda: freed.append(1))
    streams = []

    def open_queue():
        streams.append(ScriptedStream())
        return passes_of(streams[-1])

    queues = CudaQueues(open_queue, 256)
    queues.warm_up(64)
    assert len(streams) == 1
    recorded = len(streams[0].graphs)
    assert recorded == len(list(usual_shapes(256, 64)))
    batch = batch_of(64, 60, 60, 60)
    assert np.abs(run(queues, batch) - on_cpu(batch)).max() <= 1e-5
    assert sum(graph.replays for graph in streams[0].graphs) == 1
    queues.trim()
    assert freed
    run(queues, batch)
    assert len(streams) == 2


def test_buckets_hold_what_falls_into_them_and_waste_at_most_half():
    rng = np.random.default_rng(0)
    for _ in range(500):
        lengths = rng.integers(1, rng.integers(2, 600), rng.integers(1, 200))
        exact, bucket = Shape.of(lengths), Shape.of(lengths).bucket()
        assert bucket.tokens >= exact.tokens
        assert bucket.texts >= exact.texts
        assert bucket.longest >= exact.longest
        assert bucket.tokens <= max(64, 1.5 * exact.tokens)
        assert bucket.texts < 2 * exact.texts
        assert bucket.longest <= max(32, 2 * exact.longest)
        assert bucket.bucket() == bucket


def test_warm_up_records_what_a_sorted_corpus_fills():
    recorded = set(usual_shapes(16384, 512))
    assert len(recorded) < 24
    rng = np.random.default_rng(0)
    for length in (512, 300, 256, 130, 128, 70, 40, 33):
        # Full passes of about one length, as they come of sorting.
        lengths = np.full(16384 // length, length) - rng.integers(0, 2)
        assert Shape.of(lengths).bucket() in recorded, length
    assert Shape.of(np.array([12])).bucket() in recorded


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_recorded_pass_fits_together_on_cuda_and_waits_for_nothing(dtype, pooling):
    with FakeTensorMode(), torch.inference_mode():
        weights = without_residual_biases(gather_weights(checkpoint(), ARCHITECTURE))
        encoder = Encoder(weights, ARCHITECTURE, FusedLinear, CUDA, dtype)
        compute = PackedCompute(
            encoder,
            lambda offsets, longest: VarlenAttention(offsets, longest, HEADS),
            is_max=pooling == "max",
        )
        offsets = torch.zeros(9, dtype=torch.int32, device=CUDA)
        words = torch.zeros(64, dtype=torch.int32, device=CUDA)
        shares = torch.zeros(64, device=CUDA)
        inputs = DeviceInputs(Shape(64, 8, 32), offsets, words, words, words, shares)
        vectors = compute(inputs)
        assert (vectors.device.type, vectors.dtype) == ("cuda", torch.float32)
        assert vectors.shape == (9, HIDDEN)
        # What would wait for the device is told apart here.
        with pytest.raises(DataDependentOutputException):
            vectors.sum().item()


def test_the_padded_fallback_fits_together_on_cuda():
    with FakeTensorMode(), torch.inference_mode():
        weights = gather_weights(checkpoint(), ARCHITECTURE)
        encoder = Encoder(weights, ARCHITECTURE, PlainLinear, CUDA, torch.float32)
        ids = torch.zeros(12, dtype=torch.int32, device=CUDA)
        attention = PaddedAttention(np.array([7, 5]), HEADS, CUDA)
        tokens = encoder(ids, ids, attention)
        assert (tokens.shape, tokens.device.type) == ((12, HIDDEN), "cuda")


@pytest.mark.parametrize(
    ("dtype", "head_size", "capability", "runs"),
    [
        (torch.bfloat16, 32, (9, 0), True),
        (torch.float16, 64, (8, 0), True),
        (torch.float32, 64, (9, 0), False),
        (torch.bfloat16, 64, (7, 5), False),
        (torch.bfloat16, 20, (9, 0), False),
        (torch.bfloat16, 512, (9, 0), False),
    ],
    ids=str,
)
def test_flash_attention_is_used_where_it_can_run(monkeypatch, dtype, head_size, capability, runs):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert has_varlen(CUDA, dtype, head_size) is runs
