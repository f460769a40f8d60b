"""A `.npy` file of vectors that grows, and that a crash leaves whole.

Rows are appended, made durable, and only then counted: first in `NAME.progress.json` beside the
file, then in the file's own header. Whatever was written and not counted is written again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from shared.infrastructure.local_embeddings.vectors import Vectors
from shared.infrastructure.resilience.errors import ConfigurationError

_HEADER = 128  # bytes; the format wants a multiple of 64
_ROW_TYPE = np.dtype("<f4")


class VectorFile:
    """Vectors of a corpus on disk, float32 of shape (rows, dim); `numpy.load` reads it any time.

    Args:
        path: The file; `path` + `.progress.json` is written beside it.
        dimension: Numbers in a row.
        identity: What the vectors depend on, as plain JSON types; a file that was begun with
            another one is refused.

    Raises:
        ConfigurationError: The file was begun with another identity, or is none of ours.
    """

    def __init__(self, path: Path, dimension: int, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._progress_path = path.with_name(path.name + ".progress.json")
        self._dimension = dimension
        self._identity = dict(identity)
        self._texts = hashlib.sha256()
        self.rows = 0
        self.failures: dict[int, str] = {}
        self._digest = self._texts.hexdigest()
        resumes = self._read_progress()
        self._file: BinaryIO = path.open("r+b" if resumes else "x+b")
        if not resumes:
            self._count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def skip(self, texts: Sequence[str]) -> None:
        """Take note of texts whose rows are there already, before the next `append`."""
        self._add(texts)

    def check_skipped(self) -> None:
        """Compare the skipped texts with those whose rows are there.

        Raises:
            ConfigurationError: They are others.
        """
        if self._texts.hexdigest() != self._digest:
            raise ConfigurationError(
                f"{self._path} was begun with other texts: its first {self.rows} are not those of "
                "this corpus; write to another file"
            )

    def append(self, texts: Sequence[str], vectors: Vectors, failures: Mapping[int, str]) -> None:
        """Add the rows of the next texts; they outlive a crash once this returns.

        Args:
            texts: The texts.
            vectors: One row a text, NaN where it failed.
            failures: What went wrong with a text, by its row in the file.
        """
        self._file.seek(_HEADER + self.rows * self._dimension * _ROW_TYPE.itemsize)
        self._file.write(np.ascontiguousarray(vectors, _ROW_TYPE).tobytes())
        self._file.truncate()
        self._add(texts)
        self._digest = self._texts.hexdigest()
        self.rows += len(texts)
        self.failures.update(failures)
        self._count()

    def _add(self, texts: Sequence[str]) -> None:
        for text in texts:
            # Half of a surrogate pair is refused as a text, but not here.
            data = text.encode("utf-8", "surrogatepass")
            self._texts.update(len(data).to_bytes(8, "big") + data)

    def _count(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        progress = {
            "identity": self._identity,
            "dimension": self._dimension,
            "rows": self.rows,
            "texts_sha256": self._digest,
            "failures": {str(row): reason for row, reason in self.failures.items()},
        }
        unfinished = self._progress_path.with_name(f".{self._progress_path.name}.new")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(progress, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._progress_path)
        self._file.seek(0)
        self._file.write(_header(self.rows, self._dimension))
        self._file.flush()

    def _read_progress(self) -> bool:
        """Take up what the file beside says; return whether there was one."""
        if not self._progress_path.exists():
            if self._path.exists():
                raise ConfigurationError(
                    f"{self._path} exists and has no {self._progress_path.name} beside it: write "
                    "to another file, or delete it"
                )
            return False
        try:
            progress = json.loads(self._progress_path.read_text(encoding="utf-8"))
            identity, dimension = progress["identity"], progress["dimension"]
            self.rows, self._digest = int(progress["rows"]), str(progress["texts_sha256"])
            self.failures = {int(row): str(why) for row, why in progress["failures"].items()}
        except (ValueError, LookupError, TypeError, AttributeError) as exc:
            raise ConfigurationError(f"cannot read {self._progress_path}: {exc!r}") from exc
        changed = sorted(
            key
            for key in {*identity, *self._identity}
            if identity.get(key) != self._identity.get(key)
        )
        if changed or dimension != self._dimension:
            raise ConfigurationError(
                f"{self._path} was begun with another {', '.join(changed) or 'dimension'}: write "
                "to another file, or delete it"
            )
        if not self._path.exists():
            raise ConfigurationError(f"{self._progress_path} is there, but {self._path} is not")
        return True


def _header(rows: int, dimension: int) -> bytes:
    """Return the header of version 1.0 of the format, always of the same length."""
    description = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dimension}), }}"
    magic = b"\x93NUMPY\x01\x00"
    length = _HEADER - len(magic) - 2
    return magic + length.to_bytes(2, "little") + description.ljust(length - 1).encode() + b"\n"
