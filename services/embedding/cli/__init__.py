"""The command line: serve, embed, bench, warm, models."""

from services.embedding.cli.command_line import main

__all__ = ["main"]
