"""Texts as a corpus has them, most of them short and most tokens in the long ones; and queries."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

# Share of the texts, and their words, from least to most. With the two special tokens that BERT
# adds they are some 12, 60 and 240 tokens, and none is longer than the 256 that MiniLM reads: so
# it does not matter who cuts texts where.
KINDS = ((0.6, 6, 16), (0.3, 30, 88), (0.1, 222, 254))


def skewed_texts(vocabulary: Path, count: int, seed: int = 20) -> list[str]:
    """Return distinct texts of the model's own words, one token each; shuffled.

    Args:
        vocabulary: `vocab.txt` of the model.
        count: How many texts.
        seed: Another one gives other texts.
    """
    return skewed(_words(vocabulary), count, seed)


def skewed(words: Sequence[str], count: int, seed: int) -> list[str]:
    """Return texts of `words`; any of `count` texts in a row are about as mixed as all of them."""
    rng = random.Random(seed)  # noqa: S311 - nothing is secret
    texts: dict[str, None] = {}
    while len(texts) < count:
        # Ten at a time, so that the shares are right in any part of the texts.
        ten = [
            " ".join(rng.choices(words, k=rng.randint(least, most)))
            for share, least, most in KINDS
            for _ in range(round(10 * share))
        ]
        rng.shuffle(ten)
        texts |= dict.fromkeys(ten)
    return list(texts)[:count]


def short_texts(vocabulary: Path, seed: int = 20) -> Iterator[str]:
    """Yield distinct short texts for ever: 13.5 tokens on average, 5 to 22.

    Args:
        vocabulary: `vocab.txt` of the model.
        seed: Another one gives other texts.
    """
    words = _words(vocabulary)
    rng = random.Random(seed)  # noqa: S311 - nothing is secret
    seen: set[str] = set()
    while True:
        text = " ".join(rng.choices(words, k=rng.randint(3, 20)))
        if text not in seen:
            seen.add(text)
            yield text


def _words(vocabulary: Path) -> list[str]:
    lines = vocabulary.read_text(encoding="utf-8").split()
    return [line for line in lines if line.isascii() and line.isalpha() and len(line) > 2]
