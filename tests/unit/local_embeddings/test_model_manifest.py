import subprocess
import sys

import pytest

from shared.infrastructure.local_embeddings import (
    LocalEmbeddingConfig,
    ModelBackend,
    ModelIntegrityError,
    open_backend,
)
from shared.infrastructure.local_embeddings.manifest import main
from shared.infrastructure.local_embeddings.model_files.integrity import check_manifest, manifest_of


@pytest.fixture
def model(tmp_path):
    root = tmp_path / "model"
    (root / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "1_Pooling/config.json", "weights"):
        (root / name).write_text(f"content of {name}")
    return root


@pytest.fixture
def manifest(model, tmp_path):
    path = tmp_path / "SHA256SUMS"
    path.write_text(manifest_of(model))
    return path


def test_a_model_agrees_with_the_manifest_that_is_made_of_it(model, manifest):
    assert len(manifest.read_text().splitlines()) == 4
    check_manifest(model, manifest)


def test_a_manifest_is_what_sha256sum_writes_and_checks(model, manifest):
    subprocess.run(["sha256sum", "--check", "--strict", manifest], cwd=model, check=True)
    files = ["./config.json", "model.safetensors", "1_Pooling/config.json", "weights"]
    for options in ([], ["--binary"]):
        written = subprocess.run(
            ["sha256sum", *options, *files], cwd=model, check=True, stdout=subprocess.PIPE
        )
        manifest.write_bytes(written.stdout)
        check_manifest(model, manifest)


def test_what_no_library_reads_may_change(model, manifest):
    for name in ("README.md", ".gitattributes", "x.lock", "1_Pooling/x.metadata", "x.pyc"):
        (model / name).write_text("new")
    check_manifest(model, manifest)


def test_the_manifest_may_lie_in_the_model(model):
    path = model / "SHA256SUMS"
    path.touch()
    path.write_text(manifest_of(model))
    check_manifest(model, path)


def change(model):
    (model / "model.safetensors").write_text("other")


def remove(model):
    (model / "1_Pooling" / "config.json").unlink()


def add_weights(model):
    (model / "1_Pooling" / "model.safetensors").touch()


def add_graph(model):
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").touch()


def add_code(model):
    (model / "modeling.py").touch()


def link_directory(model):
    (model / "2_Dense").symlink_to(model.parent)


def break_link(model):
    (model / "extra").symlink_to("nowhere")


@pytest.mark.parametrize(
    ("damage", "files", "fault"),
    [
        (change, ("model.safetensors",), "changed: model.safetensors"),
        (remove, ("1_Pooling/config.json",), "missing: 1_Pooling/config.json"),
        (add_weights, ("1_Pooling/model.safetensors",), "not listed: 1_Pooling"),
        (add_graph, ("onnx/model.onnx",), "not listed: onnx/model.onnx"),
        (add_code, ("modeling.py",), "not listed: modeling.py"),
        (link_directory, ("2_Dense",), "not listed: 2_Dense"),
        (break_link, ("extra",), "not listed: extra"),
    ],
)
def test_every_difference_is_refused_by_name(model, manifest, damage, files, fault):
    damage(model)
    with pytest.raises(ModelIntegrityError, match=fault) as caught:
        check_manifest(model, manifest)
    assert caught.value.files == files


@pytest.mark.parametrize("line", ["abc  config.json", "config.json", "0" * 64, "0" * 64 + " x"])
def test_a_manifest_that_is_none_is_refused(model, manifest, line):
    manifest.write_text(manifest.read_text() + line)
    with pytest.raises(ModelIntegrityError, match="line 5"):
        check_manifest(model, manifest)
    with pytest.raises(ModelIntegrityError, match="cannot read"):
        check_manifest(model, model / "no-such-file")


@pytest.mark.parametrize("backend", list(ModelBackend))
def test_nothing_of_a_model_is_parsed_before_its_files_are_checked(model, manifest, backend):
    config = LocalEmbeddingConfig(model_name=str(model), backend=backend, manifest=manifest)
    change(model)
    with pytest.raises(ModelIntegrityError):  # its config.json is no JSON, and nobody noticed
        open_backend(config)


def test_a_model_that_agrees_is_loaded(minilm, tmp_path):
    manifest = tmp_path / "SHA256SUMS"
    manifest.write_text(manifest_of(minilm))
    options = {"backend": "onnx", "cache_dir": tmp_path, "manifest": manifest}
    backend = open_backend(LocalEmbeddingConfig(**options))
    assert backend.spec.dimension == 384
    backend.close()


def test_the_command_prints_the_manifest(model, capsys):
    main(["model", "--root", str(model.parent)])
    assert capsys.readouterr().out == manifest_of(model)
    command = [sys.executable, "-m", "shared.infrastructure.local_embeddings.manifest", model]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (manifest_of(model), "")
