"""Build the ONNX graph of a model from the command line.

`python -m shared.infrastructure.local_embeddings.onnx_export MODEL [OUT]` writes the graph of a
model directory or name to OUT, or to the cache, and prints where it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from shared.infrastructure.local_embeddings.config import Pooling
from shared.infrastructure.local_embeddings.files import ModelFiles
from shared.infrastructure.local_embeddings.onnx_cache import cached_graph, export
from shared.infrastructure.local_embeddings.resolve import resolve


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description="Build the ONNX graph of an embedding model.")
    parser.add_argument("model", help="model directory, package:NAME or hub name")
    parser.add_argument("out", nargs="?", type=Path, help="file to write; default: the cache")
    parser.add_argument("--pooling", type=Pooling, choices=list(Pooling), help="default: its own")
    options = parser.parse_args(arguments)
    found = resolve(options.model)
    files = ModelFiles(found.path, found.source)
    pooling = files.plain_pooling(options.pooling)
    if options.out:
        export(files, pooling, options.out)
    path = options.out or cached_graph(files, pooling)
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
