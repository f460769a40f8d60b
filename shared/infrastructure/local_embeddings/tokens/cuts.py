"""Cut a text that is far too long before it is tokenized, without changing a token that is kept.

Most tokenizers split at spaces before all else, so that a word, which here is what ends in a letter
or digit before a space, has at least one token, and the same ones whatever is beyond its spaces.
The words nearest to the kept end then decide all that is kept.
"""

from __future__ import annotations

import itertools
import re
import string
from typing import Any

from shared.infrastructure.local_embeddings.optional import require

# No rule of Unicode joins such a character with the space.
_WORD_END = re.compile(r"[0-9A-Za-z](?= )")
_ALPHABET = list(string.digits + string.ascii_letters)
_LONG = 8  # characters per token from which looking for a cut is cheaper than tokenizing

_NORMALIZERS = (
    "BertNormalizer",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "Strip",
    "StripAccents",
)


def head(text: str, tokens: int) -> str:
    """Return a beginning of the text that has more than `tokens` tokens, or all of it."""
    if len(text) <= _LONG * tokens:
        return text
    last = next(itertools.islice(_WORD_END.finditer(text), tokens, None), None)
    return text[: last.end()] if last else text


def tail(text: str, tokens: int) -> str:
    """Return an end of the text that has more than `tokens` tokens, or all of it."""
    size = _LONG * tokens
    while size < len(text):
        end = text[-size:]
        cuts = [word.end() for word in _WORD_END.finditer(end)]
        if len(cuts) >= tokens + 2:
            return end[cuts[-tokens - 2] :]
        size *= 2
    return text


def splits_at_spaces(tokenizer: Any) -> bool:
    """Whether what is beyond a space cannot change the tokens of a word."""
    added = tokenizer.get_added_tokens_decoder().values()
    return (
        not any(" " in token.content for token in added)
        and _keeps_spaces(tokenizer.normalizer)
        and _splits(tokenizer.pre_tokenizer)
        and all(tokenizer.encode_batch_fast(_ALPHABET, add_special_tokens=False))
    )


def _keeps_spaces(normalizer: Any) -> bool:
    kinds = require("tokenizers.normalizers", extra="onnx")
    if normalizer is None:
        return True
    if isinstance(normalizer, kinds.Sequence):
        return all(map(_keeps_spaces, normalizer))
    return isinstance(normalizer, tuple(getattr(kinds, name) for name in _NORMALIZERS))


def _splits(pre_tokenizer: Any) -> bool:
    kinds = require("tokenizers.pre_tokenizers", extra="onnx")
    if isinstance(pre_tokenizer, kinds.Sequence):
        return _splits(next(iter(pre_tokenizer), None))
    if isinstance(pre_tokenizer, kinds.ByteLevel):
        return bool(pre_tokenizer.use_regex)
    if isinstance(pre_tokenizer, kinds.Metaspace):
        return bool(pre_tokenizer.split)
    return isinstance(
        pre_tokenizer, (kinds.BertPreTokenizer, kinds.Whitespace, kinds.WhitespaceSplit)
    )
