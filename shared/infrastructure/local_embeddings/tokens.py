"""Texts to token ids: one tokenizer for every backend, with our limits instead of its file's."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.errors import InvalidTextError
from shared.infrastructure.local_embeddings.files import ModelFiles
from shared.infrastructure.local_embeddings.optional import require
from shared.infrastructure.resilience.errors import ConfigurationError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Ends where BERT splits before anything else. Its first character is one that BERT never drops, so
# that every match yields at least one token.
_WORD = re.compile(r"[0-9A-Za-z][^ \t\n\r]*")
_LONG = 8  # characters per token from which looking for a cut is cheaper than tokenizing


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token ids of some texts, ragged.

    Attributes:
        ids: Ids of each text, special tokens included.
        truncated: Whether the end of each text was cut off.
    """

    ids: Sequence[Sequence[int]]
    truncated: Sequence[bool]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, shape (n,)."""
        return np.fromiter(map(len, self.ids), np.int64, len(self.ids))

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> TokenBatch:
        """Return the texts at `rows`, in that order."""
        return TokenBatch([self.ids[row] for row in rows], [self.truncated[row] for row in rows])

    def padded(self, pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return ids and attention mask, both int64 of shape (n, longest), padded on the right."""
        lengths = self.lengths
        longest = int(lengths.max(initial=1))
        real: NDArray[np.bool_] = np.arange(longest) < lengths[:, None]
        ids = np.full(real.shape, pad_id, np.int64)
        ids[real] = np.fromiter(itertools.chain.from_iterable(self.ids), np.int64, lengths.sum())
        return ids, real.astype(np.int64)


class TextTokenizer:
    """The model's `tokenizer.json`, truncating at `max_length` tokens and padding nothing.

    It belongs to one thread: the library's tokenizers are not re-entrant.

    Args:
        files: Model directory.
        max_length: Tokens of a text that are kept; None is the model's own.

    Raises:
        ConfigurationError: The model has no room for `max_length` tokens, or they leave none for
            a text.
    """

    def __init__(self, files: ModelFiles, max_length: int | None = None) -> None:
        self.max_length = max_length or files.max_length
        self.pad_id = int(files.config.get("pad_token_id") or 0)
        self._prompt = files.default_prompt
        tokenizer = _open(files)
        if self.max_length > files.max_positions:
            raise ConfigurationError(
                f"max_length {self.max_length} is more than the {files.max_positions} positions "
                f"of {files.root}"
            )
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if self.max_length <= special:
            raise ConfigurationError(
                f"max_length {self.max_length} leaves no room beside {special} special tokens"
            )
        # The file's own rules are left over from some training run.
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_length, direction=files.truncation_side)
        self._cuts = files.truncation_side == "right" and _splits_at_spaces(tokenizer)
        self._tokenizer: Tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenize texts; the GIL is free meanwhile.

        Raises:
            InvalidTextError: A text has half of a surrogate pair, so that it is no Unicode text.
        """
        try:
            encodings = self._tokenizer.encode_batch_fast([self._head(text) for text in texts])
        except TypeError as exc:
            raise _blame(texts, exc) from exc
        return TokenBatch(
            [encoding.ids for encoding in encodings],
            [bool(encoding.overflowing) for encoding in encodings],
        )

    def _head(self, text: str) -> str:
        """Return as much of a text, with the prompt before it, as can matter to its tokens."""
        text = self._prompt + text
        if not self._cuts or len(text) <= _LONG * self.max_length:
            return text
        last = next(itertools.islice(_WORD.finditer(text), self.max_length - 1, None), None)
        return text[: last.end()] if last else text


def _open(files: ModelFiles) -> Any:
    tokenizers = require("tokenizers", extra="onnx")
    tokenizer = tokenizers.Tokenizer.from_file(str(files.tokenizer_file))
    if files.lowercases:
        normalizers = tokenizers.normalizers
        steps = [normalizers.Lowercase(), *filter(None, [tokenizer.normalizer])]
        tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _splits_at_spaces(tokenizer: Any) -> bool:
    """Whether what follows a space cannot change the tokens before it."""
    tokenizers = require("tokenizers", extra="onnx")
    added = tokenizer.get_added_tokens_decoder().values()
    return (
        isinstance(tokenizer.model, tokenizers.models.WordPiece)
        and isinstance(tokenizer.pre_tokenizer, tokenizers.pre_tokenizers.BertPreTokenizer)
        and isinstance(tokenizer.normalizer, tokenizers.normalizers.BertNormalizer)
        and not any(" " in token.content for token in added)
    )


def _blame(texts: Sequence[str], cause: Exception) -> Exception:
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            return InvalidTextError(f"text {index} is no valid Unicode: {exc}", index)
    return cause
