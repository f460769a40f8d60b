"""Pairs of texts to token ids that tell which of the two a token belongs to."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.config import TokenizeOptions
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.tokens import cuts
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.local_embeddings.tokens.tokenizer import (
    as_invalid_text,
    open_tokenizer,
)
from shared.infrastructure.resilience.errors import ConfigurationError

if TYPE_CHECKING:
    from tokenizers import Encoding

# A token's type lies above its id, so that a batch of pairs is a batch as any other.
_TYPE_SHIFT = 30
# As many as there are calls that take turns on a reranker.
_QUERIES_KEPT = 8


def untagged(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids of a batch of pairs and the types of its tokens, both as `ids` is shaped."""
    return ids & ((1 << _TYPE_SHIFT) - 1), ids >> _TYPE_SHIFT


class _Part(NamedTuple):
    """Consecutive tokens of a pair.

    Attributes:
        side: 0 if they are those of the first text, 1 of the second; None if they are special.
        tokens: The special ones, tagged with their types; else the tag of all.
    """

    side: int | None
    tokens: NDArray[np.int64]


class PairTokenizer:
    """The model's `tokenizer.json` for pairs: the prompt is the first text of each.

    The prompt is tokenized once for many texts, and pairs are put together here, as the library
    does it.

    Args:
        files: Model directory.
        max_length: Tokens of a pair that are kept; None is the model's own.

    Attributes:
        max_length: Tokens of a pair that are kept.
        pad_id: Id of the padding token.
        own_side: End that is dropped of what is too long.

    Raises:
        ConfigurationError: The model has no room for `max_length` tokens, or they leave none for
            a pair.
    """

    def __init__(self, files: ModelFiles, max_length: int | None = None) -> None:
        self.max_length = max_length or files.max_length
        self.pad_id = files.pad_token_id
        self._tokenizer = tokenizer = open_tokenizer(files)
        special = tokenizer.num_special_tokens_to_add(is_pair=True)
        if not special < self.max_length <= files.max_positions:
            raise ConfigurationError(
                f"max_length {self.max_length} is not above the {special} special tokens of a "
                f"pair, or above the {files.max_positions} positions of {files.root}"
            )
        self._room = self.max_length - special
        rule: Any = tokenizer.truncation or {}
        self.own_side = files.truncation_side or str(rule.get("direction", "right"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._cuts = cuts.splits_at_spaces(tokenizer)
        self._parts = _parts(tokenizer)
        # A call of many texts comes in several chunks, in between those of others.
        self._query = functools.lru_cache(_QUERIES_KEPT)(self._one)

    def __call__(self, texts: Sequence[str], options: TokenizeOptions) -> TokenBatch:
        """Tokenize the pairs of the prompt with each text; the GIL is free meanwhile.

        Raises:
            InvalidTextError: A text has half of a surrogate pair, so that it is no Unicode text.
        """
        query = options.prompt or ""
        try:
            first = self._query(query)
            # A text that is cut must still be the longer of the two, if it was.
            kept = max(self._room, len(first))
            rows = self._encode([self._cut(text, kept) for text in texts])
        except TypeError as exc:
            raise as_invalid_text(query, texts, exc) from exc
        return TokenBatch.of(
            [self._pair(first, row) for row in rows],
            [len(first) + len(row) > self._room for row in rows],
        )

    def _encode(self, texts: list[str]) -> list[NDArray[np.int64]]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encodings]

    def _one(self, text: str) -> NDArray[np.int64]:
        return self._encode([text])[0]

    def _pair(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the tagged tokens of a pair, cut to what the model reads."""
        kept = _kept(len(first), len(second), self._room)
        sides = [
            ids[:count] if self.own_side == "right" else ids[len(ids) - count :]
            for ids, count in zip((first, second), kept, strict=True)
        ]
        return np.concatenate(
            [
                part.tokens if part.side is None else sides[part.side] | part.tokens
                for part in self._parts
            ]
        )

    def _cut(self, text: str, tokens: int) -> str:
        """Return an end of a text that has more than so many tokens, or all of it."""
        if not self._cuts:
            return text
        cut = cuts.head if self.own_side == "right" else cuts.tail
        return cut(text, tokens)


def _parts(tokenizer: Any) -> list[_Part]:
    """Return what a pair is made of, in the order in which the model wants it."""
    pair: Encoding = tokenizer.encode("a", "a")
    sides: list[int | None] = pair.sequence_ids
    tagged = np.array(pair.ids, np.int64) | np.array(pair.type_ids, np.int64) << _TYPE_SHIFT
    parts: list[_Part] = []
    for side, group in itertools.groupby(enumerate(sides), lambda token: token[1]):
        tokens = tagged[[at for at, _ in group]]
        if side is not None:
            tokens = tokens[:1] >> _TYPE_SHIFT << _TYPE_SHIFT
        parts.append(_Part(side, tokens))
    return parts


def _kept(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each are kept, of the longer as many fewer as is needed.

    Of two that are too long half is kept of each, and one token more of the longer.
    """
    if first > second:
        kept_second, kept_first = _kept(second, first, room)
        return kept_first, kept_second
    if first + second <= room:
        return first, second
    first = min(first, room // 2)
    return first, room - first
