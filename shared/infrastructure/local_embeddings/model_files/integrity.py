"""Compare the files of a model with a manifest of SHA-256 checksums, as `sha256sum` writes it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePath, PurePosixPath

from shared.infrastructure.local_embeddings.errors import ModelIntegrityError
from shared.infrastructure.local_embeddings.model_files.files import file_digest

_LINE = re.compile(r"([0-9A-Fa-f]{64}) [ *](.+)")
# Names and endings of what no library reads. All else counts, as weights may have any name.
_HARMLESS = {".gitattributes", ".gitignore", ".lock", ".md", ".metadata", ".pyc"}


def manifest_of(root: Path) -> str:
    """Return the manifest of a model directory: a line a file, checksum and relative path."""
    return "".join(f"{file_digest(root / name)}  {name}\n" for name in sorted(_names(root)))


def check_manifest(root: Path, manifest: Path) -> None:
    """Read every file of a model directory, and compare it with the manifest.

    A link to a directory is not followed, and counts as a file that is not listed.

    Raises:
        ModelIntegrityError: A file is missing, has changed or is not listed; or the manifest
            cannot be read.
    """
    own = _relative(manifest, root)
    listed = {name: checksum for name, checksum in _parse(manifest).items() if name != own}
    there = set(_names(root)) - {own}
    faults = {
        "missing": listed.keys() - there,
        "not listed": there - listed.keys(),
        "changed": {
            name for name in listed.keys() & there if file_digest(root / name) != listed[name]
        },
    }
    if any(faults.values()):
        told = [f"{fault}: {', '.join(sorted(names))}" for fault, names in faults.items() if names]
        raise ModelIntegrityError(
            f"{root} is not the model that {manifest} describes ({'; '.join(told)})",
            tuple(sorted(set[str]().union(*faults.values()))),
        )


def _names(root: Path) -> Iterable[str]:
    for path in root.rglob("*"):
        if not _is_harmless(path) and (path.is_symlink() or not path.is_dir()):
            yield path.relative_to(root).as_posix()


def _is_harmless(path: PurePath) -> bool:
    return not _HARMLESS.isdisjoint({path.name, path.suffix.lower()})


def _relative(path: Path, root: Path) -> str | None:
    path, root = path.resolve(), root.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else None


def _parse(manifest: Path) -> dict[str, str]:
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as exc:
        raise ModelIntegrityError(f"cannot read {manifest}: {exc}") from exc
    listed: dict[str, str] = {}
    for number, line in enumerate(filter(None, lines), start=1):
        match = _LINE.fullmatch(line)
        if not match:
            raise ModelIntegrityError(f"line {number} of {manifest} is no 'CHECKSUM  PATH'")
        path = PurePosixPath(match[2])  # without the ./ that `find` writes
        if not _is_harmless(path):
            listed[path.as_posix()] = match[1].lower()
    return listed
