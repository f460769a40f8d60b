"""Find the models that are on this machine, without loading one or any library for it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.infrastructure.local_embeddings import ModelBackend, UnsupportedModelError
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.model_files.resolve import resolve
from shared.infrastructure.local_embeddings.optional import require
from shared.infrastructure.resilience import ServiceError

# Reading this much takes less than a second.
_CHEAP = 256 * 2**20
_WEIGHTS = ("*.safetensors", "*.onnx")
_HIDDEN = ("hidden_size", "d_model", "dim")
_LIBRARIES: Mapping[ModelBackend, tuple[str, ...]] = {
    ModelBackend.ONNX: ("onnxruntime", "onnx", "tokenizers", "safetensors"),
    ModelBackend.FASTEMBED: ("fastembed", "onnx", "tokenizers", "safetensors"),
    ModelBackend.TRANSFORMERS: ("transformers", "torch"),
    ModelBackend.SENTENCE_TRANSFORMERS: ("sentence_transformers", "torch", "transformers"),
}


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model directory.

    Attributes:
        name: What `model_name` must be.
        source: `directory`, `package:NAME` or `hub-cache`.
        path: The directory.
        size_bytes: Size of its weights.
        dimension: Numbers in a vector; None if it cannot be used.
        max_length: Tokens of a text that are read; None if it cannot be used.
        fingerprint: As the ONNX backend in float32 has it; None if the weights are big.
        problem: Why it cannot be used; None if it can.
    """

    name: str
    source: str
    path: str
    size_bytes: int
    dimension: int | None = None
    max_length: int | None = None
    fingerprint: str | None = None
    problem: str | None = None


def models_here(root: Path | None) -> Iterator[FoundModel]:
    """Yield the models under a root, in installed packages, and in the hub's cache.

    Args:
        root: As in `LocalEmbeddingConfig.model_root`; models come from nowhere else if it is given.
    """
    if root is not None:
        yield from _in_root(root.expanduser().resolve())
        return
    yield from _in_packages()
    yield from _in_hub_cache()


def backends_here() -> dict[str, str | None]:
    """Return the version of each backend's library; None where something is not installed."""
    return {
        str(backend): importlib.metadata.version(libraries[0].replace("_", "-"))
        if all(map(importlib.util.find_spec, libraries))
        else None
        for backend, libraries in _LIBRARIES.items()
    }


def _in_root(root: Path) -> Iterator[FoundModel]:
    seen: list[Path] = []
    for config in sorted(root.rglob("config.json"), key=lambda path: (len(path.parts), path)):
        directory = config.parent
        # The modules of a model have a config.json each, too.
        inside = any(directory.is_relative_to(model) for model in seen)
        if inside or directory == root or not _is_model(directory):
            continue
        seen.append(directory)
        name = str(directory.relative_to(root))
        try:
            found = resolve(name, root)
        except ServiceError as exc:
            yield FoundModel(name, "directory", str(directory), _size(directory), problem=str(exc))
        else:
            yield _described(name, found.path, found.source)


def _in_packages() -> Iterator[FoundModel]:
    for distribution in importlib.metadata.distributions():
        files = distribution.files or ()
        names = {
            file.parts[0]
            for file in files
            if file.name == "config.json" and file.parts[1:-1] in {(), ("model",)}
        }
        for package in sorted(names):
            name = f"package:{package}"
            try:
                found = resolve(name)
            except ServiceError:
                continue
            if _is_model(found.path):
                yield _described(name, found.path, found.source)


def _in_hub_cache() -> Iterator[FoundModel]:
    if importlib.util.find_spec("huggingface_hub") is None:
        return
    hub = require("huggingface_hub", extra="onnx")
    try:
        cache = hub.scan_cache_dir()
    except hub.errors.CacheNotFound:
        return
    for repo in sorted(cache.repos, key=lambda repo: str(repo.repo_id)):
        # The revision that a name without one stands for.
        main = repo.refs.get("main")
        if repo.repo_type == "model" and main is not None and _is_model(main.snapshot_path):
            yield _described(str(repo.repo_id), main.snapshot_path, "hub-cache")


def _is_model(directory: Path) -> bool:
    return (directory / "config.json").is_file() and _size(directory) > 0


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for kind in _WEIGHTS for path in directory.rglob(kind))


def _described(name: str, path: Path, source: str) -> FoundModel:
    size, files = _size(path), ModelFiles(path, source)
    try:
        pooling = files.pooling
        cheap = size <= _CHEAP and files.weights
        fingerprint = (
            files.fingerprint(files.weights_digest, files.max_length, pooling, "float32")
            if cheap
            else None
        )
        return FoundModel(
            name, source, str(path), size, _dimension(files), files.max_length, fingerprint
        )
    except (ServiceError, OSError, ValueError, LookupError, TypeError) as exc:
        return FoundModel(name, source, str(path), size, problem=str(exc))


def _dimension(files: ModelFiles) -> int:
    """Return the numbers in a vector: what the last Dense makes of the encoder's."""
    for module in reversed(files.modules):
        if module.kind == "Dense":
            return int(module.config["out_features"])
    hidden = next((files.config[key] for key in _HIDDEN if key in files.config), None)
    if hidden is None:
        raise UnsupportedModelError(f"{files.root} does not say how many numbers its vectors have")
    return int(hidden) * (files.pooling.count("+") + 1)
