"""Libraries that are imported when they are used, so that nobody pays for one he does not use."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from shared.infrastructure.resilience.errors import MissingExtraError


def require(module: str, *, extra: str) -> Any:
    """Return a module, which is then untyped.

    Args:
        module: Its full name.
        extra: The extra of this distribution that installs it.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise _missing(module, extra) from exc


def ensure_installed(module: str, *, extra: str) -> None:
    """Raise what `require` would if a top-level module is not there; import nothing.

    Raises:
        MissingExtraError: It is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise _missing(module, extra)


def _missing(module: str, extra: str) -> MissingExtraError:
    return MissingExtraError(f"a local model that runs with {module!r}", extra)
