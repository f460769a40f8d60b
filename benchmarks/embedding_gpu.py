"""Tokens a second of our encoder on a GPU, and of sentence-transformers on the same one.

`python benchmarks/embedding_gpu.py` needs torch and numpy. It measures the card's roofline itself,
checks that the vectors agree before it times anything, lets all take turns in every round, and
writes `results/embedding_gpu.json`. Tokenizing is left out, for all alike. A case begins no
round after a minute; `--device cpu --quick` runs the same code at toy size.
"""

import argparse
import datetime as dt
import itertools
import json
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.embedding_gpu_models import (
    Model,
    plain_forward,
    random_model,
    run_padded,
    saved_model,
    sentence_transformers_forward,
)
from benchmarks.report import RESULTS, table
from benchmarks.roofline import Roofline, measure, synchronize
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.local_embeddings.torch_encoder import TorchEncoder

LEAST_LIKENESS = 0.999
ROUNDS = 7
FEWEST_ROUNDS = 3
CASE_SECONDS = 60.0  # after which no round is begun
OUR_TOKENS = (8192, 16384, 32768)
OUR_TOKENS_QUICK = (64, 256)
RIVAL_ROWS = (32, 128, 512)
TARGET_RATIO = 3.0

Runner = Callable[[TokenBatch, np.ndarray], None]


@dataclass(frozen=True)
class Row:
    """One line of the result; rates are real tokens a second.

    Attributes:
        case: Model and lengths.
        ours: Our rate, at the tokens of a pass that are best.
        batch_tokens: Those tokens.
        rival: Who is compared with.
        theirs: Its rate, at the batch size that is best for it.
        ratio: Ours by theirs.
        roofline: Rate at the card's ceiling.
        share: Ours by that.
        target: What ours should be on an H200, or None.
        likeness: Least cosine between our vectors and theirs.
        rates: Rates of all that were measured.
    """

    case: str
    ours: float
    batch_tokens: int
    rates: dict[str, float]
    rival: str
    theirs: float
    ratio: float
    roofline: float
    share: float
    target: float | None
    likeness: float


def main() -> int:
    options = parse()
    device = torch.device(options.device)
    # A CPU of this size is here to run the code, not to be compared.
    dtype = torch.bfloat16
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    roofline = measure(device, dtype, quick=options.quick)
    print(
        f"{name or 'CPU'}, torch {torch.__version__}: {roofline.flops / 1e12:.3g} TFLOP/s in a "
        f"matrix product, {roofline.bytes / 1e9:.4g} GB/s in a copy\n"
    )
    rows = [
        compare(model, case, batch, target, roofline, device, dtype, options)
        for model, case, batch, target in cases(options)
    ]
    print(report(rows))
    result = {
        "device": name,
        "date": str(dt.datetime.now(dt.UTC).date()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "dtype": str(dtype),
        "matmul_flops": roofline.flops,
        "copy_bytes": roofline.bytes,
        "rows": [asdict(row) for row in rows],
    }
    path = options.out or (RESULTS / "embedding_gpu.json" if device.type == "cuda" else None)
    if path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"written to {path}")
    return 0 if all(row.likeness >= LEAST_LIKENESS for row in rows) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    default = "cuda:0" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cuda:0, or cpu to try the script")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--model", type=Path, help="directory of an encoder, instead of random")
    parser.add_argument("--workers", type=int, default=2, help="threads that run passes")
    parser.add_argument("--out", type=Path, help="file of the result")
    return parser.parse_args()


def cases(options: argparse.Namespace) -> list[tuple[Model, str, TokenBatch, float | None]]:
    """Return models, names of cases, texts and targets."""
    tokens = 600 if options.quick else 1_500_000
    if options.model:
        model = saved_model(options.model)
        longest = min(256, model.config["max_position_embeddings"] - 2)
        return [
            (model, "@128", texts(model, fixed(128, tokens)), None),
            (model, "mixed", texts(model, mixed(longest, tokens)), None),
        ]
    if options.quick:
        small = random_model("toy", hidden=64, layers=2, heads=4, vocabulary=500)
        return [
            (small, "@32", texts(small, fixed(32, tokens)), None),
            (small, "mixed", texts(small, mixed(64, tokens)), None),
        ]
    minilm = random_model("MiniLM-L6", hidden=384, layers=6, heads=12, vocabulary=30522)
    base = random_model("BERT-base", hidden=768, layers=12, heads=12, vocabulary=30522)
    return [
        (minilm, "@128", texts(minilm, fixed(128, tokens)), 10e6),
        (minilm, "mixed", texts(minilm, mixed(256, tokens)), None),
        (base, "@512", texts(base, fixed(512, tokens // 3)), 2.3e6),
    ]


def fixed(length: int, tokens: int) -> np.ndarray:
    return np.full(max(1, tokens // length), length)


def mixed(longest: int, tokens: int) -> np.ndarray:
    """Return lengths of which 60 % are some 12 tokens, 30 % some 60 and 10 % the longest."""
    rng = np.random.default_rng(0)
    centres = rng.choice([12, 60, longest], size=max(8, tokens // 50), p=[0.6, 0.3, 0.1])
    return np.clip(centres * rng.uniform(0.6, 1.4, len(centres)), 3, longest).astype(np.int64)


def texts(model: Model, lengths: np.ndarray) -> TokenBatch:
    rng = np.random.default_rng(1)
    ids = rng.integers(5, model.config["vocab_size"], int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenBatch(ids, offsets, np.zeros(len(lengths), np.bool_))


def compare(
    model: Model,
    case: str,
    batch: TokenBatch,
    target: float | None,
    roofline: Roofline,
    device: torch.device,
    dtype: torch.dtype,
    options: argparse.Namespace,
) -> Row:
    ours = our_runners(model, int(batch.lengths.max()), device, dtype, options)
    theirs = their_runners(model, device, dtype)
    runners, dimension = ours | theirs, model.config["hidden_size"]
    # Twice, since shapes that come often are recorded as graphs only then.
    vectors = {key: answer(runner, batch, dimension) for key, runner in [*runners.items()] * 2}
    likeness = min(cosine(vectors[a], vectors[b]) for a in ours for b in theirs)
    if likeness < LEAST_LIKENESS:
        print(f"{model.name} {case}: the vectors differ, cosine {likeness:.6f}")
    rates = time_all(runners, batch, dimension, device, options.quick)
    best, rival = (max(keys, key=rates.__getitem__) for keys in (ours, theirs))
    ceiling = roofline.tokens_per_second(model.flops(batch.lengths), model.traffic())
    return Row(
        case=f"{model.name} {case}",
        ours=rates[best],
        batch_tokens=int(best.removeprefix("ours by ")),
        rates=rates,
        rival=rival,
        theirs=rates[rival],
        ratio=rates[best] / rates[rival],
        roofline=ceiling,
        share=rates[best] / ceiling,
        target=target,
        likeness=likeness,
    )


def our_runners(
    model: Model,
    longest: int,
    device: torch.device,
    dtype: torch.dtype,
    options: argparse.Namespace,
) -> dict[str, Runner]:
    runners: dict[str, Runner] = {}
    for tokens in OUR_TOKENS_QUICK if options.quick else OUR_TOKENS:
        encoder = TorchEncoder(
            model.tensors,
            model.config,
            pooling="mean",
            device=device,
            dtype=dtype,
            batch_tokens=tokens,
        )
        encoder.warm_up(longest)
        runners[f"ours by {tokens}"] = lambda batch, out, encoder=encoder: run_packed(
            encoder, batch, out, options.workers
        )
    return runners


def their_runners(model: Model, device: torch.device, dtype: torch.dtype) -> dict[str, Runner]:
    forward = sentence_transformers_forward(model, device, dtype)
    name = "sentence-transformers" if forward else "plain padded BERT in torch"
    forward = forward or plain_forward(model, device, dtype)
    return {
        f"{name} by {rows}": lambda batch, out, rows=rows: run_padded(
            forward, batch, device, rows, out
        )
        for rows in RIVAL_ROWS
    }


def run_packed(encoder: TorchEncoder, batch: TokenBatch, out: np.ndarray, workers: int) -> None:
    """Run ours as the engine does: sorted by length, cut by tokens, on a few threads."""
    order = np.argsort(-batch.lengths, kind="stable")
    ends = np.cumsum(batch.lengths[order])
    bounds = [0]
    while bounds[-1] < len(order):
        before = int(ends[bounds[-1] - 1]) if bounds[-1] else 0
        last = int(np.searchsorted(ends, before + encoder.batch_tokens, side="right"))
        bounds.append(max(last, bounds[-1] + 1))
    passes = iter([order[start:end] for start, end in itertools.pairwise(bounds)])
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                rows = next(passes, None)
            if rows is None:
                return
            vectors = np.empty((len(rows), encoder.dimension), np.float32)
            encoder.forward(batch.select(rows), vectors)
            out[rows] = vectors

    with ThreadPoolExecutor(workers) as threads:
        for worker in [threads.submit(work) for _ in range(workers)]:
            worker.result()


def answer(runner: Runner, batch: TokenBatch, dimension: int) -> np.ndarray:
    out = np.full((len(batch), dimension), np.nan, np.float32)
    runner(batch, out)
    return out


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).min())


def time_all(
    runners: dict[str, Runner],
    batch: TokenBatch,
    dimension: int,
    device: torch.device,
    quick: bool,
) -> dict[str, float]:
    """Return the median rate of each; every round has each of them once."""
    started = time.perf_counter()
    tokens, out = len(batch.ids), np.empty((len(batch), dimension), np.float32)
    seen: dict[str, list[float]] = {key: [] for key in runners}
    for number in range(1 if quick else ROUNDS):
        if number >= FEWEST_ROUNDS and time.perf_counter() - started > CASE_SECONDS:
            break
        for key, runner in runners.items():
            synchronize(device)
            began = time.perf_counter()
            runner(batch, out)
            seen[key].append(tokens / (time.perf_counter() - began))
    return {key: statistics.median(rates) for key, rates in seen.items()}


def report(rows: list[Row]) -> str:
    header = [
        "",
        "tokens/s",
        "tokens a pass",
        "of the roofline",
        "target",
        "compared with",
        "tokens/s",
        "ratio",
    ]
    header += ["cosine"]
    return table(
        header,
        [
            [
                row.case,
                f"{row.ours:,.0f}",
                f"{row.batch_tokens:,}",
                f"{row.share:.0%}",
                ""
                if row.target is None
                else f"{'✓' if row.ours >= row.target else '✗'} {row.target:,.0f}",
                row.rival,
                f"{row.theirs:,.0f}",
                f"{'✓' if row.ratio >= TARGET_RATIO else '✗'} {row.ratio:.2f}",
                f"{row.likeness:.6f}",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
