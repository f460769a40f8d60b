import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from shared.infrastructure.local_embeddings import (
    InvalidTextError,
    TextTooLongError,
    TokenBatch,
    TokenizeOptions,
    Truncation,
)
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.tokens.cuts import head, splits_at_spaces, tail
from shared.infrastructure.local_embeddings.tokens.tokenizer import TextTokenizer
from shared.infrastructure.resilience import ConfigurationError

CLS, SEP = 101, 102
DEFAULT = TokenizeOptions()
START = TokenizeOptions(truncation=Truncation.START)
END = TokenizeOptions(truncation=Truncation.END)
NONE = TokenizeOptions(truncation=Truncation.NONE)
ENCODER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}


@pytest.fixture(scope="module")
def tokenizer(minilm):
    return TextTokenizer(ModelFiles(minilm))


def rows(batch):
    return [
        batch.ids[start:end].tolist()
        for start, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
    ]


def copied(minilm, directory, **changes):
    """Copy the small files of the model, with some of them changed."""
    names = ("config", "tokenizer", "tokenizer_config", "sentence_bert_config")
    for name in (*names, "config_sentence_transformers"):
        content = json.loads((minilm / f"{name}.json").read_text()) | changes.get(name, {})
        (directory / f"{name}.json").write_text(json.dumps(content))
    (directory / "modules.json").write_text(json.dumps([ENCODER, POOLING]))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    pooling = json.dumps(changes.get("pooling", {}))
    (directory / "1_Pooling" / "config.json").write_text(pooling)
    return ModelFiles(directory)


def test_the_limits_of_the_tokenizer_file_do_not_apply(tokenizer):
    texts = ["short", "word " * 200, "word " * 254, "word " * 255]
    batch = tokenizer(texts, DEFAULT)
    assert batch.lengths.tolist() == [3, 202, 256, 256]
    assert batch.truncated.tolist() == [False, False, False, True]
    assert (rows(batch)[3][0], rows(batch)[3][-1]) == (CLS, SEP)


def test_an_empty_text_is_its_special_tokens(tokenizer):
    assert rows(tokenizer([""], DEFAULT)) == [[CLS, SEP]]
    assert len(tokenizer([], DEFAULT)) == 0


def test_padding_is_on_the_right_and_masked():
    ids, mask = TokenBatch.of([[5, 6, 7], [8], []]).padded(pad_id=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9], [9, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64


def test_a_torn_surrogate_pair_is_named(tokenizer):
    with pytest.raises(InvalidTextError, match="text 2") as caught:
        tokenizer(["fine", "", "\ud83e!"], DEFAULT)
    assert caught.value.index == 2
    with pytest.raises(InvalidTextError, match="prompt"):
        tokenizer(["fine"], TokenizeOptions(prompt="\ud83e"))


@pytest.mark.parametrize("max_length", [2, 513])
def test_a_length_the_model_cannot_have_is_refused(minilm, max_length):
    with pytest.raises(ConfigurationError, match="max_length"):
        TextTokenizer(ModelFiles(minilm), max_length)


def test_a_shorter_length_may_be_asked_for(minilm):
    batch = TextTokenizer(ModelFiles(minilm), 5)(["one two three four five"], DEFAULT)
    assert (batch.lengths.tolist(), batch.truncated.tolist()) == ([5], [True])


def test_either_end_of_a_long_text_may_be_dropped(minilm):
    tokenizer = TextTokenizer(ModelFiles(minilm), 4)
    both = "alpha beta gamma"
    first, last = (rows(tokenizer([text], END))[0] for text in ("alpha beta", "beta gamma"))
    for _ in range(2):  # what one call asks for is not what the next one gets
        assert rows(tokenizer([both], START)) == [last]
        assert rows(tokenizer([both], END)) == [first]
        assert rows(tokenizer([both], DEFAULT)) == [first]
    assert tokenizer(["beta gamma", both], START).truncated.tolist() == [False, True]


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, "alpha beta"),
        ({"tokenizer_config": {"truncation_side": "left"}}, "beta gamma"),
        ({"tokenizer": {"truncation": {"direction": "Left"}}}, "beta gamma"),
        (
            {
                "tokenizer_config": {"truncation_side": "right"},
                "tokenizer": {"truncation": {"direction": "Left"}},
            },
            "alpha beta",
        ),
        ({"sentence_bert_config": {"tokenizer_args": {"truncation_side": "left"}}}, "beta gamma"),
    ],
)
def test_the_side_that_is_dropped_is_the_models_own(minilm, tmp_path, changes, kept):
    rule = changes.get("tokenizer", {}).get("truncation")
    if rule:
        rule |= {"max_length": 128, "strategy": "LongestFirst", "stride": 0}
    tokenizer = TextTokenizer(copied(minilm, tmp_path, **changes), 4)
    expected = rows(tokenizer([kept], END))
    assert rows(tokenizer(["alpha beta gamma"], DEFAULT)) == expected


def test_a_long_text_is_refused_if_nothing_may_be_dropped(minilm):
    tokenizer = TextTokenizer(ModelFiles(minilm), 5)
    assert tokenizer(["one two three"], NONE).lengths.tolist() == [5]
    with pytest.raises(TextTooLongError, match="text 1 has 1002 tokens") as caught:
        tokenizer(["short", "long " * 1000, "long " * 2000], NONE)
    error = caught.value
    assert (error.index, error.token_count, error.max_length) == (1, 1002, 5)
    assert isinstance(error, InvalidTextError)
    assert tokenizer(["long " * 1000], DEFAULT).lengths.tolist() == [5]
    # The prompt is part of the text.
    with pytest.raises(TextTooLongError, match="text 0 has 6 tokens"):
        tokenizer(["one two three"], TokenizeOptions("say ", Truncation.NONE))


@pytest.mark.parametrize(
    ("prompt", "text"), [(None, "ask: why"), ("", "why"), ("tell ", "tell why")]
)
def test_a_prompt_comes_before_every_text(minilm, tmp_path, tokenizer, prompt, text):
    prompts = {"prompts": {"query": "ask: "}, "default_prompt_name": "query"}
    prompted = TextTokenizer(copied(minilm, tmp_path, config_sentence_transformers=prompts))
    batch = prompted(["why"], TokenizeOptions(prompt=prompt))
    assert rows(batch) == rows(tokenizer([text], DEFAULT))
    assert batch.prompt_tokens == 0


def test_the_tokens_of_a_prompt_are_counted_if_the_pooling_leaves_them_out(minilm, tmp_path):
    prompts = {"prompts": {"query": "ask me: "}, "default_prompt_name": "query"}
    files = copied(
        minilm,
        tmp_path,
        config_sentence_transformers=prompts,
        pooling={"include_prompt": False},
    )
    tokenizer = TextTokenizer(files)
    assert tokenizer(["why"], DEFAULT).prompt_tokens == len(["[CLS]", "ask", "me", ":"])
    assert tokenizer(["why"], TokenizeOptions(prompt="")).prompt_tokens == 0
    assert tokenizer(["why"], TokenizeOptions(prompt="long " * 999)).prompt_tokens == 255


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"tokenizer": {"normalizer": None}}, False),
        (
            {
                "tokenizer": {"normalizer": None},
                "sentence_bert_config": {"do_lower_case": True},
            },
            True,
        ),
        ({"tokenizer_config": {"do_lower_case": False}}, False),
        (
            {
                "tokenizer_config": {
                    "do_lower_case": False,
                    "tokenizer_class": "PreTrainedTokenizerFast",
                }
            },
            True,
        ),
    ],
)
def test_texts_are_lower_cased_if_the_model_says_so(minilm, tmp_path, tokenizer, changes, same):
    told = TextTokenizer(copied(minilm, tmp_path, **changes))
    hello = rows(tokenizer(["hello"], DEFAULT))
    assert (rows(told(["Hello"], DEFAULT)) == hello) is same


CORPUS = ["The quick brown fox, jumps over 13 lazy dogs!", "word words wordy 日本語 e\u0301"] * 9
MAX_LENGTH = 12


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


def without_special_tokens():
    tokenizer = word_piece()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    return tokenizer


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>", "<mask>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    return tokenizer


def unigram(scheme="always"):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def unigram_of_the_first_word():
    return unigram("first")


def lower_casing():
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.NFC()])
    return tokenizer


def splitting_nothing():
    tokenizer = unigram()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    return tokenizer


def knowing_a_phrase():
    tokenizer = word_piece()
    tokenizer.add_tokens([AddedToken("lazy dog", normalized=False)])
    return tokenizer


def dropping_letters():
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


CUTTING = [
    word_piece,
    without_special_tokens,
    byte_level,
    unigram,
    unigram_of_the_first_word,
    lower_casing,
]
NOT_CUTTING = [splitting_nothing, knowing_a_phrase, dropping_letters]
PIECES = st.sampled_from(
    [
        *[
            "word",
            "Fox",
            "a",
            "7",
            "lazy dog",
            "d\u0301",
            "\u03a3",
            "日本",
            "\U0001f917",
            "e\u0301",
        ],
        *[" ", " ", " ", "  ", "\t", "\n", "\u00a0", "\u2028", "\x00", "\u200b", " \u0301"],
        *[".", "..", "'s", "[SEP]", "<mask>", " <mask>", "</s>", "x" * 120, "\u2581", "##"],
    ]
)


@pytest.fixture(scope="module", params=CUTTING + NOT_CUTTING)
def pair(request, tmp_path_factory):
    """A tokenizer of ours, and the library's own over the same file."""
    root = tmp_path_factory.mktemp("tokenizer")
    (root / "config.json").write_text('{"max_position_embeddings": 64}')
    plain = request.param()
    plain.save(str(root / "tokenizer.json"))
    plain.no_padding()
    return TextTokenizer(ModelFiles(root), MAX_LENGTH), plain


def agrees(pair, text, prompt=""):
    ours, plain = pair
    for truncation, direction in ((Truncation.END, "right"), (Truncation.START, "left")):
        plain.enable_truncation(MAX_LENGTH, direction=direction)
        expected = plain.encode(prompt + text)
        batch = ours([text], TokenizeOptions(prompt, truncation))
        assert batch.ids.tolist() == expected.ids
        assert batch.truncated[0] == bool(expected.overflowing)
    plain.no_truncation()
    count = len(plain.encode(prompt + text))
    none = TokenizeOptions(prompt, Truncation.NONE)
    if count <= MAX_LENGTH:
        assert ours([text], none).lengths.tolist() == [count]
    else:
        with pytest.raises(TextTooLongError) as caught:
            ours([text], none)
        assert caught.value.token_count == count


@settings(max_examples=60, deadline=None)
@given(text=st.lists(PIECES, max_size=120).map("".join), prompt=st.sampled_from(["", "ask: "]))
def test_cutting_a_long_text_early_changes_no_token(pair, text, prompt):
    agrees(pair, text, prompt)


@pytest.mark.parametrize(
    "text",
    [
        "word " * 60,
        "a " * 100,
        "a b " * 6,  # exactly as many tokens as fit
        "a " * 11,
        "b " * 3 + "x" * 500,
        "x" * 500 + " b" * 3,
        "x" * 500 + " b" * 13,
        "日本語" * 200,
        " " * 500,
        "a" + " " * 500 + "b",
        ". " * 400,
    ],
)
def test_texts_at_the_edges_of_a_cut_keep_their_tokens(pair, text):
    agrees(pair, text)


@pytest.mark.parametrize("build", CUTTING)
def test_a_tokenizer_that_splits_at_spaces_is_spared_most_of_a_long_text(build):
    assert splits_at_spaces(build())


@pytest.mark.parametrize("build", NOT_CUTTING)
def test_a_tokenizer_that_may_look_beyond_a_space_sees_all_of_a_text(build):
    assert not splits_at_spaces(build())


def test_only_one_end_of_a_huge_text_is_tokenized():
    text = "word " * 1_000_000
    assert head(text, 256) == ("word " * 257)[:-1]
    assert tail(text, 256) == " word" * 257 + " "
    assert head("short", 256) == tail("short", 256) == "short"
