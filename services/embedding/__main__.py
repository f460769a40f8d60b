"""`python -m services.embedding`: the command line of the embedding service."""

from __future__ import annotations

import sys

from services.embedding.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
