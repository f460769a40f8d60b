"""A language model service on several hosts: generate, stream, embed, and know how it is doing."""

from services.llm.service import ProductionLLMService
from services.llm.settings import LLMServiceSettings

__all__ = ["LLMServiceSettings", "ProductionLLMService"]
