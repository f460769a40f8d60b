import itertools
import statistics

from benchmarks.embedding_texts import short_texts, skewed, skewed_texts


def words_of(texts):
    return [len(text.split()) for text in texts]


def test_most_texts_are_short_and_most_words_are_in_long_ones(minilm_vocabulary):
    texts = skewed_texts(minilm_vocabulary, 2000)
    words = words_of(texts)
    assert len(set(texts)) == 2000
    assert sum(count <= 16 for count in words) == 1200
    assert sum(count >= 222 for count in words) == 200
    # As the corpus of the published figures: 51 tokens a text, two of them special.
    assert 47 <= statistics.mean(words) <= 51
    assert max(words) + 2 <= 256


def test_the_first_texts_are_mixed_like_all():
    words = words_of(skewed([f"w{number}" for number in range(500)], 1000, seed=1)[:200])
    assert sum(count <= 16 for count in words) == 120
    assert sum(count >= 222 for count in words) == 20


def test_a_seed_gives_the_same_texts_again_and_another_gives_others():
    words = [f"w{number}" for number in range(500)]
    assert skewed(words, 50, seed=1) == skewed(words, 50, seed=1)
    assert not set(skewed(words, 50, seed=1)) & set(skewed(words, 50, seed=2))


def test_short_texts_are_distinct_and_as_long_as_queries(minilm_vocabulary):
    texts = list(itertools.islice(short_texts(minilm_vocabulary), 3000))
    tokens = [words + 2 for words in words_of(texts)]
    assert len(set(texts)) == 3000
    assert 13 <= statistics.mean(tokens) <= 14
    assert (min(tokens), max(tokens)) == (5, 22)


def test_short_texts_of_two_seeds_have_none_in_common(minilm_vocabulary):
    one, other = (
        set(itertools.islice(short_texts(minilm_vocabulary, seed), 200)) for seed in (1, 2)
    )
    assert not one & other
