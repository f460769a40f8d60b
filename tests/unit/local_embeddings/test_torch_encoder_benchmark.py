"""The GPU benchmark as a whole, at toy size on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "embedding_gpu.py"
# Runs the script where nothing but torch and numpy is installed.
BARE = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        absent = {"pydantic", "safetensors", "sentence_transformers", "tokenizers", "transformers"}
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("command", "rival"),
    [
        ([sys.executable, "-c", BARE, str(SCRIPT)], "plain padded BERT in torch"),
        ([sys.executable, "-m", "benchmarks.embedding_gpu"], "sentence-transformers"),
    ],
    ids=["bare", "beside sentence-transformers"],
)
def test_the_gpu_benchmark_runs_and_its_vectors_agree(tmp_path, command, rival):
    out = tmp_path / "result.json"
    options = ["--device", "cpu", "--quick", "--workers", "1", "--out", str(out)]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert [row["case"] for row in result["rows"]] == ["toy @32", "toy mixed"]
    for row in result["rows"]:
        assert row["rival"].startswith(rival)
        assert row["likeness"] >= 0.999
        assert min(row["ours"], row["theirs"], row["roofline"]) > 0
    assert "TFLOP/s" in done.stdout
