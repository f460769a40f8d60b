"""Texts to token ids: one tokenizer for every backend, with our limits instead of its file's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shared.infrastructure.local_embeddings.config import TokenizeOptions, Truncation
from shared.infrastructure.local_embeddings.errors import InvalidTextError, TextTooLongError
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.optional import require
from shared.infrastructure.local_embeddings.tokens import cuts
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch
from shared.infrastructure.resilience.errors import ConfigurationError

if TYPE_CHECKING:
    from tokenizers import Encoding

# Classes that take tokenizer.json as it is; others build BERT's normalizer from their options.
_AS_IT_IS = {"PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend"}
_BERT_OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


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
        self.pad_id = files.pad_token_id
        self._default_prompt = files.default_prompt
        self._include_prompt = files.include_prompt
        if self.max_length > files.max_positions:
            raise ConfigurationError(
                f"max_length {self.max_length} is more than the {files.max_positions} positions "
                f"of {files.root}"
            )
        self._tokenizer = _open(files)
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if self.max_length <= special:
            raise ConfigurationError(
                f"max_length {self.max_length} leaves no room beside {special} special tokens"
            )
        # The file's own rules are left over from some training run, but for the side.
        rule: Mapping[str, str] = self._tokenizer.truncation or {}
        self._own_side = files.truncation_side or rule.get("direction", "right")
        self._side = ""
        self._tokenizer.no_padding()
        self._may_cut = cuts.splits_at_spaces(self._tokenizer)

    def __call__(self, texts: Sequence[str], options: TokenizeOptions) -> TokenBatch:
        """Tokenize texts; the GIL is free meanwhile.

        Raises:
            InvalidTextError: A text has half of a surrogate pair, so that it is no Unicode text.
            TextTooLongError: A text is too long, and none may be truncated.
        """
        prompt = self._default_prompt if options.prompt is None else options.prompt
        side = self._own_side
        if options.truncation in {Truncation.START, Truncation.END}:
            side = "left" if options.truncation is Truncation.START else "right"
        self._truncate_at(side)
        try:
            encodings = self._tokenizer.encode_batch_fast(
                [self._cut(prompt + text, side) for text in texts]
            )
        except TypeError as exc:
            raise _blame(prompt, texts, exc) from exc
        truncated = [self._is_truncated(encoding) for encoding in encodings]
        if options.truncation is Truncation.NONE and True in truncated:
            index = truncated.index(True)
            raise TextTooLongError(index, self._count(prompt + texts[index]), self.max_length)
        return TokenBatch.of(
            [encoding.ids for encoding in encodings], truncated, self._left_out(prompt)
        )

    def _truncate_at(self, side: str) -> None:
        if side != self._side:
            self._tokenizer.enable_truncation(self.max_length, direction=side)
            self._side = side

    def _cut(self, text: str, side: str) -> str:
        """Return as much of a text as can matter to the tokens that are kept."""
        if not self._may_cut:
            return text
        cut = cuts.head if side == "right" else cuts.tail
        return cut(text, self.max_length)

    def _is_truncated(self, encoding: Encoding) -> bool:
        # What overflows is copied when it is asked for.
        return len(encoding) == self.max_length and bool(encoding.overflowing)

    def _count(self, text: str) -> int:
        self._tokenizer.no_truncation()
        self._side = ""
        return len(self._tokenizer.encode_batch_fast([text])[0])

    def _left_out(self, prompt: str) -> int:
        """Return how many tokens at the start of a text the pooling leaves out.

        They are those of the prompt alone, but for a special token at its end.
        """
        if self._include_prompt or not prompt:
            return 0
        ids = self._tokenizer.encode_batch_fast([prompt])[0].ids
        added = self._tokenizer.get_added_tokens_decoder()
        ends_specially = bool(ids) and ids[-1] in added and added[ids[-1]].special
        return len(ids) - ends_specially


def _open(files: ModelFiles) -> Any:
    tokenizers = require("tokenizers", extra="onnx")
    tokenizer = tokenizers.Tokenizer.from_file(str(files.tokenizer_file))
    config, normalizer = files.tokenizer_config, tokenizer.normalizer
    normalizers = tokenizers.normalizers
    if (
        isinstance(normalizer, normalizers.BertNormalizer)
        and config.get("tokenizer_class") not in _AS_IT_IS
    ):
        for option in _BERT_OPTIONS.keys() & config.keys():
            setattr(normalizer, _BERT_OPTIONS[option], config[option])
        tokenizer.normalizer = normalizer
    if files.lowercases:
        steps = [normalizers.Lowercase(), *filter(None, [normalizer])]
        tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _blame(prompt: str, texts: Sequence[str], cause: Exception) -> Exception:
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            return InvalidTextError(f"text {index} is no valid Unicode: {exc}", index)
    try:
        prompt.encode()
    except UnicodeEncodeError as exc:
        return InvalidTextError(f"the prompt is no valid Unicode: {exc}")
    return cause
