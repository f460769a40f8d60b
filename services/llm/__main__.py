"""`python -m services.llm`: the command line of the LLM service."""

from __future__ import annotations

import sys

from services.llm.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
