"""Texts and token ids of callers on their way to a token batch, on the loop or on a thread."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.backends import BackendSpec
from shared.infrastructure.local_embeddings.config import TokenizeOptions, Truncation
from shared.infrastructure.local_embeddings.engine import Engine
from shared.infrastructure.local_embeddings.errors import (
    InvalidTextError,
    InvalidTokensError,
    TextTooLongError,
)
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch

# What is tokenized in one go: short enough that other calls get their turn in between.
CHUNK_TEXTS = 512
CHUNK_CHARACTERS = 2**18

# What is tokenized on the event loop: some 60 microseconds of it; a thread would cost more than
# the texts do.
_NOW_TEXTS = 4
_NOW_CHARACTERS = 256


def tokenize_now(
    engine: Engine, texts: Sequence[str], options: TokenizeOptions
) -> TokenBatch | None:
    """Tokenize on the calling thread, if that takes no longer than handing it to another.

    Raises:
        InvalidTextError: A text cannot be read.
    """
    if len(texts) > _NOW_TEXTS or not engine.is_open:
        return None
    spec = engine.backend.spec
    characters = count_characters(texts, options, spec)
    if characters > _NOW_CHARACTERS or not spec.tokenizes_anywhere:
        return None
    # The other end, and how long a text is that is too long, are told by tokenizers that are made
    # when they are first needed, which takes a while.
    if options.truncation is Truncation.NONE:
        if 2 * characters > spec.max_length:
            return None
    elif _side(options.truncation, spec) != spec.truncation_side:
        return None
    return engine.backend.tokenize(texts, options)


async def tokenize(engine: Engine, texts: Sequence[str], options: TokenizeOptions) -> TokenBatch:
    """Tokenize on the preparing thread, a chunk at a time.

    Raises:
        InvalidTextError: A text cannot be read.
    """
    parts: list[TokenBatch] = []
    start = 0
    for chunk in _chunks(texts, _prompt_length(options, engine.backend.spec)):
        work = functools.partial(tokenize_chunk, engine, chunk, options)
        try:
            parts.append(await engine.prepare(work))
        except InvalidTextError as exc:
            raise exc.moved(start) from exc.__cause__
        start += len(chunk)
    return TokenBatch.joined(parts)


async def tokenize_each(
    engine: Engine, texts: Sequence[str], options: TokenizeOptions
) -> list[TokenBatch | InvalidTextError]:
    """Tokenize as `tokenize` does, but each text for itself."""
    each: list[TokenBatch | InvalidTextError] = []
    for chunk in _chunks(texts, _prompt_length(options, engine.backend.spec)):
        each += await engine.prepare(functools.partial(_each_of, engine, chunk, options))
    return each


def count_characters(texts: Sequence[str], options: TokenizeOptions, spec: BackendSpec) -> int:
    """Return the characters that are tokenized: those of the prompt, too, before each text."""
    return sum(map(len, texts)) + len(texts) * _prompt_length(options, spec)


def _prompt_length(options: TokenizeOptions, spec: BackendSpec) -> int:
    return len(spec.default_prompt if options.prompt is None else options.prompt)


def _each_of(
    engine: Engine, texts: Sequence[str], options: TokenizeOptions
) -> list[TokenBatch | InvalidTextError]:
    try:
        return [*tokenize_chunk(engine, texts, options).split()]
    except InvalidTextError as exc:
        if len(texts) == 1:
            return [exc]
    return [one for text in texts for one in _each_of(engine, [text], options)]


def tokenize_chunk(engine: Engine, texts: Sequence[str], options: TokenizeOptions) -> TokenBatch:
    """Tokenize on a thread of the engine; others wait meanwhile."""
    with engine.tokenizing:
        return engine.backend.tokenize(texts, options)


async def count_tokens(engine: Engine, texts: Sequence[str], prompt: str | None) -> list[int]:
    """Return the tokens of each text, however many there are.

    Raises:
        InvalidTextError: A text cannot be read.
    """
    tokens = await tokenize(engine, texts, TokenizeOptions(prompt))
    counts: list[int] = tokens.lengths.tolist()
    for row in np.flatnonzero(tokens.truncated).tolist():
        try:
            await tokenize(engine, [texts[row]], TokenizeOptions(prompt, Truncation.NONE))
        except TextTooLongError as exc:
            counts[row] = exc.token_count
    return counts


def read_tokens(
    rows: Sequence[Sequence[int]], spec: BackendSpec, truncation: Truncation | None = None
) -> TokenBatch:
    """Return token ids as they are, cut to what the model reads.

    Raises:
        InvalidTokensError: A row is empty, or has something that is no id of the model's; `index`
            says which.
        TextTooLongError: A row is too long, and none may be cut.
    """
    limit = spec.max_length
    keeps_end = _side(truncation, spec) == "left"
    kept: list[NDArray[Any]] = []
    for index, row in enumerate(rows):
        ids = _checked(row, index, spec.vocabulary)
        if len(ids) > limit:
            if truncation is Truncation.NONE:
                raise TextTooLongError(index, len(ids), limit)
            ids = ids[-limit:] if keeps_end else ids[:limit]
        kept.append(ids)
    return TokenBatch.of(kept, [len(row) > limit for row in rows])


def check_tokens(tokens: TokenBatch, spec: BackendSpec) -> None:
    """Refuse tokens that the model cannot read.

    Raises:
        InvalidTokensError: A text has no token, too many, or one that the model does not have.
    """
    if not len(tokens):
        return
    lengths, bound = tokens.lengths, spec.vocabulary or 2**31
    if lengths.min() < 1 or lengths.max() > spec.max_length:
        raise InvalidTokensError(f"a text has to have from 1 to {spec.max_length} tokens")
    if tokens.ids.min() < 0 or tokens.ids.max() >= bound:
        raise InvalidTokensError(f"a token id is not below {bound}")


def _checked(row: Sequence[int], index: int, vocabulary: int | None) -> NDArray[Any]:
    try:
        ids = np.asarray(row)
    except (ValueError, OverflowError) as exc:
        raise InvalidTokensError(f"text {index} is no list of token ids: {exc}", index) from exc
    if not ids.size:
        raise InvalidTokensError(f"text {index} has no token ids", index)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InvalidTokensError(f"text {index} is no list of token ids", index)
    bound = vocabulary or 2**31
    if ids.min() < 0 or ids.max() >= bound:
        raise InvalidTokensError(f"text {index} has a token id that is not below {bound}", index)
    return ids


def _side(truncation: Truncation | None, spec: BackendSpec) -> str:
    match truncation:
        case Truncation.START:
            return "left"
        case Truncation.END:
            return "right"
        case _:
            return spec.truncation_side


def _chunks(texts: Sequence[str], prompt_length: int) -> Iterator[Sequence[str]]:
    """Yield consecutive parts that are short enough to be tokenized in one go."""
    start = characters = 0
    for at, text in enumerate(texts):
        length = prompt_length + len(text)
        characters += length
        full = at - start == CHUNK_TEXTS or characters > CHUNK_CHARACTERS
        if full and at > start:
            yield texts[start:at]
            start, characters = at, length
    yield texts[start:]
