"""The contenders of `embedding_bulk`: each is opened in a process of its own.

All read the same weights. Who wants an ONNX graph is given what `torch.onnx.export` makes of them,
beside a tokenizer file that is free of a training run's padding.
"""

# ruff: noqa: PLC0415 - no process holds a library that another contender needs

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
BATCH = 32


class Setup(NamedTuple):
    """What every contender is given.

    Attributes:
        model: Directory of the model, as its authors made it.
        plain: Directory with the exported graphs and all that peers want beside them.
        cache: Our own `cache_dir`; nothing has been calibrated in it.
        threads: CPUs there are, and threads to use.
    """

    model: str
    plain: str
    cache: str
    threads: int


class Arm(NamedTuple):
    """A contender.

    Attributes:
        open: Loads it; takes seconds.
        is_sorted: Whether it is given the texts by length, longest first.
        most: Texts it is given in a turn at most.
        is_extra: Whether no bar depends on it, so that it runs in every fourth round only.
    """

    open: Callable[[Setup], Embed]
    is_sorted: bool = False
    most: int | None = None
    is_extra: bool = False


def _ours(backend: str, dtype: str = "float32", *, pooled: bool = False) -> Callable[..., Embed]:
    def start(setup: Setup) -> Embed:
        from shared.infrastructure.local_embeddings import (
            LocalEmbeddingConfig,
            LocalEmbeddingModel,
            LocalEmbeddingPool,
        )

        config = LocalEmbeddingConfig(
            model_name=MODEL, backend=backend, dtype=dtype, cache_dir=setup.cache
        )
        if pooled:
            model = LocalEmbeddingPool(config, size=setup.threads)
        else:
            model = LocalEmbeddingModel(config)
        loop = asyncio.Runner()
        loop.run(model.load())
        return lambda texts: loop.run(model.embed(texts))

    return start


def _sentence_transformers(dtype: str) -> Callable[[Setup], Embed]:
    def start(setup: Setup) -> Embed:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(setup.threads)
        number_format = {"dtype": getattr(torch, dtype)}
        model = SentenceTransformer(setup.model, device="cpu", model_kwargs=number_format)
        return lambda texts: model.encode(list(texts), batch_size=BATCH, show_progress_bar=False)

    return start


def _onnxruntime(setup: Setup) -> Embed:
    """Open ONNX Runtime with its own defaults, pooling inside the graph."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(setup.plain) / "tokenizer.json"))
    tokenizer.enable_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setup.threads
    graph = str(Path(setup.plain) / "pooled.onnx")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def embed(texts: Sequence[str]) -> Vectors:
        return np.concatenate([one_pass(texts[at : at + BATCH]) for at in _starts(texts)])

    def one_pass(texts: Sequence[str]) -> Vectors:
        encodings = tokenizer.encode_batch_fast(texts)
        ids = np.array([encoding.ids for encoding in encodings], np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (vectors,) = session.run(["sentence_embedding"], feeds)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return embed


def _light_embed(setup: Setup) -> Embed:
    """Open light-embed; it sorts by characters itself."""
    import onnxruntime
    from light_embed import TextEmbedding

    # It has no setting for threads, and ONNX Runtime would count the cores of the host.
    plain_options = onnxruntime.SessionOptions

    def with_threads() -> Any:
        options = plain_options()
        options.intra_op_num_threads = setup.threads
        return options

    onnxruntime.SessionOptions = with_threads
    model = TextEmbedding(setup.plain, model_config={"onnx_file": "pooled.onnx"})
    return lambda texts: model.encode(list(texts), batch_size=BATCH)


def _libembedding(setup: Setup) -> Embed:
    from libembedding import TextEmbedding

    model = TextEmbedding(setup.plain, threads=setup.threads, batch_size=BATCH, max_length=256)
    return lambda texts: model.embed(list(texts))


def _fastembed(**options: Any) -> Callable[[Setup], Embed]:
    def start(setup: Setup) -> Embed:
        from fastembed import TextEmbedding

        model = TextEmbedding(MODEL, specific_model_path=setup.plain, threads=setup.threads)
        return lambda texts: np.array(list(model.embed(texts, **options)), np.float32)

    return start


def _starts(texts: Sequence[str]) -> range:
    return range(0, len(texts), BATCH)


ARMS = {
    "ours onnx": Arm(_ours("onnx")),
    "ours onnx, pool": Arm(_ours("onnx", pooled=True)),
    "ours onnx, sorted": Arm(_ours("onnx"), is_sorted=True),
    "ours transformers bf16": Arm(_ours("transformers", "bfloat16")),
    "ours fastembed": Arm(_ours("fastembed")),
    "ours transformers": Arm(_ours("transformers"), is_extra=True),
    "ours onnx int8": Arm(_ours("onnx", "int8"), is_extra=True),
    "onnxruntime, sorted": Arm(_onnxruntime, is_sorted=True),
    "light-embed": Arm(_light_embed, is_sorted=True),
    "libembedding-ng, sorted": Arm(_libembedding, is_sorted=True),
    "sentence-transformers": Arm(_sentence_transformers("float32")),
    "sentence-transformers bf16": Arm(_sentence_transformers("bfloat16")),
    # As it comes: batches of 256 in the order of arrival. One batch tells its speed.
    "fastembed": Arm(_fastembed(), most=256),
    "fastembed, sorted": Arm(_fastembed(batch_size=BATCH), is_sorted=True, is_extra=True),
}
