"""Write the manifest of a model.

::

    python -m shared.infrastructure.local_embeddings.manifest MODEL > SHA256SUMS
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from shared.infrastructure.local_embeddings.model_files.integrity import manifest_of
from shared.infrastructure.local_embeddings.model_files.resolve import resolve


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line a file of the model, checksum and path, as `sha256sum` does."""
    parser = argparse.ArgumentParser(description="Print the SHA-256 checksums of a model's files.")
    parser.add_argument("model", help="name or directory of the model")
    parser.add_argument("--root", type=Path, help="the directory that models are in")
    options = parser.parse_args(arguments)
    sys.stdout.write(manifest_of(resolve(options.model, options.root).path))


if __name__ == "__main__":
    main()
