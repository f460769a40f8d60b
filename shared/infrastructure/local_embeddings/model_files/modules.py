"""The steps that a sentence-transformers model consists of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath

from shared.infrastructure.local_embeddings.errors import UnsupportedModelError
from shared.infrastructure.local_embeddings.model_files.model_json import (
    Json,
    read_json,
    read_json_list,
)

_LIBRARY = "sentence_transformers."


@dataclass(frozen=True)
class Module:
    """One step.

    Attributes:
        kind: Its type without the package, such as `Pooling`.
        path: Directory of its files.
    """

    kind: str
    path: Path

    @cached_property
    def config(self) -> Json:
        """Its `config.json`; empty if it has none."""
        return read_json(self.path / "config.json", default={})


def read_modules(root: Path) -> list[Module]:
    """Return the modules that `modules.json` lists, but for those that only training needs.

    Raises:
        UnsupportedModelError: One would run code that came with the model, or lies outside of its
            directory.
    """
    modules = [_module(root, entry) for entry in read_json_list(root / "modules.json")]
    return [module for module in modules if module.kind != "Dropout"]


def _module(root: Path, entry: Json) -> Module:
    name = str(entry.get("type"))
    # Versions of the library before 6 import any other class from the directory, unasked; and a
    # Router names classes in a file of its own.
    if not name.startswith(_LIBRARY) or name.endswith((".Router", ".Asym")):
        raise UnsupportedModelError(
            f"{root} has a module {name!r}: code that is not sentence-transformers' is never run"
        )
    path = PureWindowsPath(str(entry.get("path", "")))  # knows both slashes, and drives
    if path.anchor or ".." in path.parts:
        raise UnsupportedModelError(f"module {entry.get('path')!r} lies outside of {root}")
    return Module(name.rpartition(".")[2], root.joinpath(*path.parts))
