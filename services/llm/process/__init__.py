"""The LLM process: several hosts as one, over HTTP."""

from services.llm.process.app import LLMApp
from services.llm.process.server import serve

__all__ = [
    # app.py
    "LLMApp",
    # server.py
    "serve",
]
