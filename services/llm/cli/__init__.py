"""The command line of the LLM service."""

from services.llm.cli.command_line import main

__all__ = ["main"]
