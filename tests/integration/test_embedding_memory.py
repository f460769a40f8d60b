"""Models come and go, and the memory of the process stays: each series is a process of its own."""

import pytest

from benchmarks.embedding_memory import REAL, drift, measured
from benchmarks.embedding_tiny import write_tiny_model
from shared.infrastructure.local_embeddings import ModelBackend

WARM_UP, CYCLES = 40, 100
# With one arena, glibc's own to and fro is some 0.1 MB; a leak of 20 kB a cycle would be 2 MB.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
MOST_GROWTH = 1.0


def test_100_loads_of_a_tiny_model_leave_less_than_10_kb_each(tmp_path):
    model = write_tiny_model(tmp_path / "model")
    series = measured(
        ModelBackend.ONNX, str(model), WARM_UP + CYCLES, tmp_path, environment=ONE_ARENA
    )
    assert len(series.megabytes) == WARM_UP + CYCLES
    assert drift(series.megabytes[WARM_UP:]).growth < MOST_GROWTH


@pytest.mark.parametrize("backend", list(ModelBackend))
def test_the_real_model_gives_its_memory_back(backend, tmp_path):
    first, *later = measured(backend, REAL, 3, tmp_path).megabytes
    # One copy of the weights is 90 MB.
    assert max(later) - first < 45
