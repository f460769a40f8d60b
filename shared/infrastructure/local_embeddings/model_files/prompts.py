"""What a model wants to be put before a text, by what the text is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

InputType = Literal["query", "document"]

# A model's prompt for a document has one of these names; the first that it has counts.
_NAMES: Mapping[InputType, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}


def prompt_for(prompts: Mapping[str, str], input_type: InputType) -> str:
    """Return what a model wants before a query or a document; "" if it names nothing for it.

    The model's default prompt is not for texts whose use is known.

    Args:
        prompts: The model's prompts, by name.
        input_type: What the text is.
    """
    return next((prompts[name] for name in _NAMES[input_type] if name in prompts), "")
