"""How many tokens a forward pass should hold on this machine, as `calibrate` has measured it.

Each measurement is a file of its own in `calibration` under the cache directory, named after what
it is about and put in place at once, so that processes that write at the same time lose nothing.
"""

from __future__ import annotations

import json
import logging
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from shared.infrastructure.local_embeddings.config import DEFAULT_CACHE_DIR
from shared.infrastructure.local_embeddings.model_files.files import digest

_log = logging.getLogger(__name__)


class CalibrationKey(NamedTuple):
    """What the best size of a pass depends on.

    Attributes:
        fingerprint: Of the model, as `BackendSpec` has it.
        backend: Library that runs it.
        device: `cpu` or `cuda:N`.
        dtype: Number format of the arithmetic.
        threads: CPU threads of one pass.
    """

    fingerprint: str
    backend: str
    device: str
    dtype: str
    threads: int


def calibrated_batch_tokens(cache_dir: Path | None, key: CalibrationKey) -> int | None:
    """Return the tokens in a pass that were measured to run fastest; None if nobody measured.

    A file that cannot be read is as good as none; the log says so.

    Args:
        cache_dir: As in `LocalEmbeddingConfig`; None is ~/.cache/morgan-sdk.
        key: What is to be run.
    """
    path = _path(cache_dir, key)
    try:
        return _read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError) as exc:
        _log.warning("the calibration in %s is ignored: %s: %s", path, type(exc).__name__, exc)
        return None


def save_calibration(cache_dir: Path | None, key: CalibrationKey, batch_tokens: int) -> Path:
    """Write what was measured in place of what was there; return the file.

    Args:
        cache_dir: As in `LocalEmbeddingConfig`; None is ~/.cache/morgan-sdk.
        key: What was run.
        batch_tokens: Tokens in a pass that ran fastest.
    """
    path = _path(cache_dir, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    text = json.dumps({**key._asdict(), "batch_tokens": batch_tokens}, indent=2)
    try:
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _read(path: Path) -> int:
    batch_tokens: Any = json.loads(path.read_text(encoding="utf-8"))["batch_tokens"]
    if not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens!r}")
    return batch_tokens


def _path(cache_dir: Path | None, key: CalibrationKey) -> Path:
    directory = (cache_dir or DEFAULT_CACHE_DIR).expanduser() / "calibration"
    return directory / f"{digest(*map(str, key))}.json"
