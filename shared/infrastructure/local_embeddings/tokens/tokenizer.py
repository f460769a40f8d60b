"""Texts to token ids: one tokenizer for every backend, with our limits instead of its file's."""

from __future__ import annotations

import copy
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


# Texts that are encoded one by one, which keeps the GIL: the hop to the library's threads, and to
# get the GIL back from another thread, takes longer than they do.
_FEW_TEXTS = 4
_FEW_CHARACTERS = 512
_SIDES = {Truncation.START: "left", Truncation.END: "right"}


class TextTokenizer:
    """The model's `tokenizer.json`, truncating at `max_length` tokens and padding nothing.

    Any thread may call it at any time: what is truncated at another end has a tokenizer of its own,
    since the library's cannot be changed while another thread uses them.

    Args:
        files: Model directory.
        max_length: Tokens of a text that are kept; None is the model's own.

    Attributes:
        max_length: Tokens of a text that are kept.
        pad_id: Id of the padding token.
        own_side: End of a text that the model drops: `left` or `right`.

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
        tokenizer = open_tokenizer(files)
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if self.max_length <= special:
            raise ConfigurationError(
                f"max_length {self.max_length} leaves no room beside {special} special tokens"
            )
        # The file's own rules are left over from some training run, but for the side.
        rule: Mapping[str, str] = tokenizer.truncation or {}
        self.own_side = files.truncation_side or rule.get("direction", "right")
        self._may_cut = cuts.splits_at_spaces(tokenizer)
        self._by_side = {self.own_side: self._truncating(tokenizer, self.own_side)}

    def __call__(self, texts: Sequence[str], options: TokenizeOptions) -> TokenBatch:
        """Tokenize texts; the GIL is free meanwhile, unless they are few and short.

        Raises:
            InvalidTextError: A text has half of a surrogate pair, so that it is no Unicode text.
            TextTooLongError: A text is too long, and none may be truncated.
        """
        prompt = self._default_prompt if options.prompt is None else options.prompt
        side = _SIDES.get(options.truncation or Truncation.NONE, self.own_side)
        tokenizer = self._tokenizer(side)
        try:
            encodings = _encode(tokenizer, [self._cut(prompt + text, side) for text in texts])
        except TypeError as exc:
            raise as_invalid_text(prompt, texts, exc) from exc
        truncated = [self._is_truncated(encoding) for encoding in encodings]
        if options.truncation is Truncation.NONE and True in truncated:
            index = truncated.index(True)
            (count,) = self.count([texts[index]], prompt)
            raise TextTooLongError(index, count, self.max_length)
        return TokenBatch.of(
            [encoding.ids for encoding in encodings],
            truncated if True in truncated else None,
            0 if self._include_prompt or not prompt else self._left_out(tokenizer, prompt),
        )

    def count(self, texts: Sequence[str], prompt: str | None = None) -> list[int]:
        """Return the tokens of each text, however many there are, special ones included.

        Raises:
            InvalidTextError: A text is no valid Unicode.
        """
        prompt = self._default_prompt if prompt is None else prompt
        try:
            encodings = _encode(self._tokenizer(""), [prompt + text for text in texts])
        except TypeError as exc:
            raise as_invalid_text(prompt, texts, exc) from exc
        return list(map(len, encodings))

    def _tokenizer(self, side: str) -> Any:
        """Return the one that truncates at `side`; none if that is empty."""
        if side not in self._by_side:
            own = copy.deepcopy(self._by_side[self.own_side])
            self._by_side[side] = self._truncating(own, side)
        return self._by_side[side]

    def _truncating(self, tokenizer: Any, side: str) -> Any:
        tokenizer.no_padding()
        if side:
            tokenizer.enable_truncation(self.max_length, direction=side)
        else:
            tokenizer.no_truncation()
        return tokenizer

    def _cut(self, text: str, side: str) -> str:
        """Return as much of a text as can matter to the tokens that are kept."""
        if not self._may_cut:
            return text
        cut = cuts.head if side == "right" else cuts.tail
        return cut(text, self.max_length)

    def _is_truncated(self, encoding: Encoding) -> bool:
        # What overflows is copied when it is asked for.
        return len(encoding) == self.max_length and bool(encoding.overflowing)

    def _left_out(self, tokenizer: Any, prompt: str) -> int:
        """Return how many tokens at the start of a text the pooling leaves out.

        They are those of the prompt alone, but for a special token at its end.
        """
        ids = tokenizer.encode_batch_fast([prompt])[0].ids
        added = tokenizer.get_added_tokens_decoder()
        ends_specially = bool(ids) and ids[-1] in added and added[ids[-1]].special
        return len(ids) - ends_specially


def _encode(tokenizer: Any, texts: list[str]) -> list[Encoding]:
    if len(texts) <= _FEW_TEXTS and sum(map(len, texts)) <= _FEW_CHARACTERS:
        return [tokenizer.encode(text) for text in texts]
    encodings: list[Encoding] = tokenizer.encode_batch_fast(texts)
    return encodings


def open_tokenizer(files: ModelFiles) -> Any:
    """Return the library's tokenizer of a model, with the options that its other files have."""
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


def as_invalid_text(prompt: str, texts: Sequence[str], cause: Exception) -> Exception:
    """Return the error that names the text which the library could not read."""
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
