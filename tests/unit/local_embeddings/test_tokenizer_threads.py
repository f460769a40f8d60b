"""One tokenizer for all threads, whatever they ask of it."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.infrastructure.local_embeddings import (
    InvalidTextError,
    TokenBatch,
    TokenizeOptions,
    Truncation,
)
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.tokens.tokenizer import TextTokenizer

ASKED = [
    TokenizeOptions(truncation=Truncation.START),
    TokenizeOptions(truncation=Truncation.END),
    TokenizeOptions(),
]


def rows(batch: TokenBatch) -> list[list[int]]:
    return [part.ids.tolist() for part in batch.split()]


def test_threads_share_a_tokenizer_whatever_they_ask_of_it(minilm):
    tokenizer = TextTokenizer(ModelFiles(minilm), 16)
    texts = ["alpha beta gamma " * 20, "short", *(f"{n} words " * n for n in range(40))]
    asked = ASKED * 4
    expected = [rows(tokenizer(texts, options)) for options in ASKED]
    fresh = TextTokenizer(ModelFiles(minilm), 16)
    with ThreadPoolExecutor(4) as threads:
        many = [threads.submit(fresh, texts, options) for options in asked]
        few = [rows(fresh(texts[:2], options)) for options in asked]
        assert [rows(done.result()) for done in many] == expected * 4
    assert few == [answer[:2] for answer in expected] * 4


def test_tokens_are_counted_before_anything_is_dropped(minilm):
    tokenizer = TextTokenizer(ModelFiles(minilm), 5)
    assert tokenizer.count(["one", "long " * 1000, ""]) == [3, 1002, 2]
    assert tokenizer.count(["one"], "say ") == [4]
    with pytest.raises(InvalidTextError, match="text 1"):
        tokenizer.count(["fine", "\ud83e"])
