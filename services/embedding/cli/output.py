"""Write what came of a command: JSON for programs, lines for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any


def tell(content: Mapping[str, Any], lines: str, *, as_json: bool) -> None:
    """Write one JSON object, or the lines that say the same."""
    sys.stdout.write(json.dumps(content) + "\n" if as_json else lines.rstrip("\n") + "\n")
    sys.stdout.flush()


def warn(message: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(message + "\n")
