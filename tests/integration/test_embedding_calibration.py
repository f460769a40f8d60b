"""The command measures a model, and whoever loads that model the same way uses what it found."""

import re

from benchmarks.embedding_tiny import write_tiny_model
from shared.infrastructure.local_embeddings import (
    LocalEmbeddingConfig,
    LocalEmbeddingModel,
    ModelBackend,
)
from shared.infrastructure.local_embeddings.calibrate import CPU_BUDGETS, main


async def batch_tokens(**options):
    config = LocalEmbeddingConfig(backend=ModelBackend.ONNX, device="cpu", **options)
    async with LocalEmbeddingModel(config) as model:
        return model.get_info()["max_batch_tokens"]


async def test_a_model_runs_at_what_was_measured_for_it(tmp_path, capsys):
    model = str(write_tiny_model(tmp_path / "model"))
    assert main([model, "--threads", "1", "--device", "cpu", "--cache-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for budget in CPU_BUDGETS:
        assert re.search(rf"^ *{budget:,} +[\d,]+  [\d,]+ to [\d,]+$", said, re.MULTILINE)
    chosen = int(re.search(r"^(\d+) tokens a pass", said, re.MULTILINE)[1])
    assert chosen in CPU_BUDGETS

    (found,) = (tmp_path / "calibration").iterdir()
    found.write_text(found.read_text().replace(f'"batch_tokens": {chosen}', '"batch_tokens": 333'))
    measured_here = {"model_name": model, "cache_dir": tmp_path, "threads": 1}
    assert await batch_tokens(**measured_here) == 333
    assert await batch_tokens(**measured_here | {"threads": 2}) != 333
    # Whoever asks for a size has it.
    assert await batch_tokens(**measured_here, max_batch_tokens=100) == 100
