import json
import random

import numpy as np
import pytest
from tokenizers import Tokenizer

from shared.infrastructure.local_embeddings import InvalidTextError, TokenBatch
from shared.infrastructure.local_embeddings.files import ModelFiles
from shared.infrastructure.local_embeddings.tokens import TextTokenizer
from shared.infrastructure.resilience import ConfigurationError

CLS, SEP = 101, 102


@pytest.fixture(scope="module")
def tokenizer(minilm):
    return TextTokenizer(ModelFiles(minilm))


@pytest.fixture(scope="module")
def plain(minilm):
    """The library's own tokenizer at the model's limit, without our shortcuts."""
    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return tokenizer


def copied(minilm, directory, **changes):
    """Copy the small files of the model, with some of them changed."""
    for name in ("config.json", "tokenizer.json", "sentence_bert_config.json"):
        text = (minilm / name).read_text()
        if change := changes.get(name.partition(".")[0]):
            text = json.dumps(json.loads(text) | change)
        (directory / name).write_text(text)
    if "prompts" in changes:
        (directory / "config_sentence_transformers.json").write_text(json.dumps(changes["prompts"]))
    return ModelFiles(directory)


def test_the_limits_of_the_tokenizer_file_do_not_apply(tokenizer):
    batch = tokenizer(["short", "word " * 200, "word " * 254, "word " * 255])
    assert batch.lengths.tolist() == [3, 202, 256, 256]
    assert list(batch.truncated) == [False, False, False, True]
    assert (batch.ids[3][0], batch.ids[3][-1]) == (CLS, SEP)


def test_an_empty_text_is_its_special_tokens(tokenizer):
    assert tokenizer([""]).ids == [[CLS, SEP]]
    assert len(tokenizer([])) == 0


def test_padding_is_on_the_right_and_masked():
    ids, mask = TokenBatch([[5, 6, 7], [8], []], [False] * 3).padded(pad_id=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9], [9, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64


@pytest.mark.parametrize("seed", range(15))
def test_cutting_a_long_text_early_changes_no_token(tokenizer, plain, seed):
    dice = random.Random(seed)
    pieces = [
        "word",
        "\u3042",
        "\U0001f917",
        "e\u0301",
        "\x00",
        "\x1c",
        "\u200b",
        "..",
        "7",
        "[SEP]",
    ]
    pieces += [" ", "  ", "\t", "\n", "\u00a0", "\u2028", "x" * 150, "\u4e2d\u6587", "\u0301"]
    text = "".join(dice.choice(pieces) for _ in range(dice.randrange(1500, 6000)))
    batch = tokenizer([text])
    expected = plain.encode(text)
    assert batch.ids[0] == expected.ids
    assert batch.truncated[0] == bool(expected.overflowing)


def test_only_the_head_of_a_huge_text_is_tokenized(tokenizer):
    assert len(tokenizer._head("word " * 1_000_000)) == 256 * len("word ") - 1


def test_a_torn_surrogate_pair_is_named(tokenizer):
    with pytest.raises(InvalidTextError, match="text 2") as caught:
        tokenizer(["fine", "", "\ud83e!"])
    assert caught.value.index == 2


@pytest.mark.parametrize("max_length", [2, 513])
def test_a_length_the_model_cannot_have_is_refused(minilm, max_length):
    with pytest.raises(ConfigurationError, match="max_length"):
        TextTokenizer(ModelFiles(minilm), max_length)


def test_a_shorter_length_may_be_asked_for(minilm):
    batch = TextTokenizer(ModelFiles(minilm), 5)(["one two three four five"])
    assert (batch.lengths.tolist(), list(batch.truncated)) == ([5], [True])


def test_the_models_default_prompt_comes_before_every_text(minilm, tmp_path, tokenizer):
    prompts = {"prompts": {"query": "ask: "}, "default_prompt_name": "query"}
    prompted = TextTokenizer(copied(minilm, tmp_path, prompts=prompts))
    assert prompted(["why"]).ids == tokenizer(["ask: why"]).ids


def test_texts_are_lower_cased_if_the_model_says_so(minilm, tmp_path, tokenizer):
    cased = {"normalizer": None}
    told = copied(minilm, tmp_path, tokenizer=cased, sentence_bert_config={"do_lower_case": True})
    assert TextTokenizer(told)(["Hello"]).ids == tokenizer(["hello"]).ids
