"""Pairs of texts, against the library that tokenizes and truncates pairs itself."""

import itertools
import json

import pytest

from shared.infrastructure.local_embeddings import InvalidTextError, TokenizeOptions
from shared.infrastructure.local_embeddings.model_files.files import ModelFiles
from shared.infrastructure.local_embeddings.reranking import pairs
from shared.infrastructure.local_embeddings.reranking.pairs import PairTokenizer, untagged
from shared.infrastructure.local_embeddings.tokens.tokenizer import open_tokenizer

HARD = ["", "a", "[SEP] 🤗 ##ing", " two  words ", "don't, won't!", "unbroken" * 9]


def words(count):
    return " ".join(itertools.islice(itertools.cycle(["one", "two", "six"]), count))


PROCESSORS = {
    "template": None,
    "bert": {"type": "BertProcessing", "sep": ["[SEP]", 102], "cls": ["[CLS]", 101]},
    "roberta": {
        "type": "RobertaProcessing",
        "sep": ["[SEP]", 102],
        "cls": ["[CLS]", 101],
        "trim_offsets": True,
        "add_prefix_space": False,
    },
    "none": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
}


def files_with(minilm, directory, processor, side):
    tokenizer = json.loads((minilm / "tokenizer.json").read_text())
    tokenizer["post_processor"] = processor or tokenizer["post_processor"]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((minilm / "tokenizer_config.json").read_text()) | {"truncation_side": side}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    for name in ("config.json", "sentence_bert_config.json"):
        (directory / name).write_text((minilm / name).read_text())
    return ModelFiles(directory, "directory")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_length", [8, 33])
@pytest.mark.parametrize("processor", PROCESSORS)
def test_pairs_are_those_of_the_library(minilm, tmp_path, processor, max_length, side):
    files = files_with(minilm, tmp_path, PROCESSORS[processor], side)
    ours, theirs = PairTokenizer(files, max_length), open_tokenizer(files)
    theirs.no_padding()
    theirs.enable_truncation(max_length, strategy="longest_first", direction=side)
    half = max_length // 2
    lengths = (half - 3, half - 2, half - 1, half, max_length, max_length + 1, 9 * max_length)
    # What is as long as this is cut before it is tokenized.
    texts = [*HARD, *map(words, lengths), "far too long " * 8 * max_length]
    for query in texts[:-1]:
        batch = ours(texts, TokenizeOptions(prompt=query))
        for text, row in zip(texts, batch.split(), strict=True):
            expected = theirs.encode(query, text)
            ids, types = untagged(row.ids)
            assert ids.tolist() == expected.ids, (query[:20], text[:20])
            assert types.tolist() == expected.type_ids
            assert row.truncated.tolist() == [bool(expected.overflowing)]


def test_a_query_is_tokenized_once_and_long_texts_are_cut(minilm):
    tokenizer = PairTokenizer(ModelFiles(minilm, "directory"), 128)
    library, read = tokenizer._tokenizer, []

    class Counting:
        def encode_batch_fast(self, texts, **options):
            read.append(sum(map(len, texts)))
            return library.encode_batch_fast(texts, **options)

    tokenizer._tokenizer = Counting()
    query = "word number " * 1000
    for _ in range(3):
        tokenizer(["short text"] * 32, TokenizeOptions(prompt=query))
    assert read == [len(query), 320, 320, 320]
    del read[:]
    tokenizer(["far too long " * 50_000], TokenizeOptions(prompt="a longer query " * 20))
    assert read[1] < 5000


def test_what_is_no_unicode_is_refused_wherever_it_is(minilm):
    tokenizer = PairTokenizer(ModelFiles(minilm, "directory"), 128)
    with pytest.raises(InvalidTextError, match="text 1"):
        tokenizer(["a", "\ud83d"], TokenizeOptions(prompt="a"))
    with pytest.raises(InvalidTextError, match="prompt"):
        tokenizer(["a"], TokenizeOptions(prompt="\ud83d"))


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (2, 3, (2, 3)),
        (9, 2, (5, 2)),
        (2, 9, (2, 5)),
        (9, 8, (4, 3)),
        (8, 9, (3, 4)),
        (9, 9, (3, 4)),
    ],
)
def test_of_two_that_are_too_long_the_longer_keeps_one_more(first, second, kept):
    assert pairs._kept(first, second, 7) == kept
