"""Have another host go on with an answer that broke off: by giving it the answer's beginning."""

from __future__ import annotations

import math
from typing import cast

from shared.infrastructure.balancing.call import JSONObject
from shared.infrastructure.balancing.dialects.payloads import as_object
from shared.models import ChatCompletionChunk

_LIMITS = ("max_completion_tokens", "max_tokens")
_CHARACTERS_PER_TOKEN = 4
# What is wanted with these is not a plain text.
_NOT_TEXT = ("tools", "functions", "logprobs", "top_logprobs", "reasoning", "reasoning_effort")


def is_continuable(payload: JSONObject) -> bool:
    """Say whether the answer to a request is plain text, which a host could go on with."""
    if any(payload.get(key) for key in _NOT_TEXT) or (payload.get("n") or 1) != 1:
        return False
    form = as_object(payload.get("response_format")).get("type")
    return form in {None, "text"} and payload.get("modalities") in (None, ["text"])


def prefilled(payload: JSONObject, beginning: str) -> JSONObject:
    """Return the request for the rest of an answer of which `beginning` is there.

    The last two fields are for vLLM and SGLang; others go on with a last message of the assistant
    without being told.
    """
    said = {"role": "assistant", "content": beginning}
    rest = {
        key: max(1, limit - math.ceil(len(beginning) / _CHARACTERS_PER_TOKEN))
        for key in _LIMITS
        if isinstance(limit := payload.get(key), int)
    }
    return {
        **payload,
        **rest,
        "messages": [*cast("list[JSONObject]", payload.get("messages") or []), said],
        "add_generation_prompt": False,
        "continue_final_message": True,
    }


class Seam:
    """Joins an answer and its continuation.

    Hosts refuse a beginning that ends in white space, so it is sent without; the model then says
    that space again, and it must not stand there twice.

    Args:
        partial: Text delivered before.

    Attributes:
        beginning: The part of it that a host is given.
    """

    def __init__(self, partial: str) -> None:
        self.beginning = partial.rstrip()
        self._space = partial[len(self.beginning) :]

    def joined(self, chunk: ChatCompletionChunk) -> ChatCompletionChunk:
        """Return a piece of the continuation without what was delivered before."""
        text = chunk.text
        if not (text and self._space):
            return chunk
        shared = 0
        while shared < min(len(text), len(self._space)) and text[shared] == self._space[shared]:
            shared += 1
        # Space that the model says otherwise, or not at all, stays as it was delivered.
        self._space = self._space[shared:] if shared == len(text) else ""
        return chunk if not shared else _with_text(chunk, text[shared:])


def _with_text(chunk: ChatCompletionChunk, text: str) -> ChatCompletionChunk:
    choice, *others = cast("list[JSONObject]", chunk.data["choices"])
    delta = {**as_object(choice.get("delta")), "content": text}
    return ChatCompletionChunk({**chunk.data, "choices": [{**choice, "delta": delta}, *others]})
