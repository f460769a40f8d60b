import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling

from shared.infrastructure.local_embeddings import Pooling, normalized, shortened
from shared.infrastructure.local_embeddings.vectors import pool
from shared.infrastructure.resilience import ConfigurationError

LENGTHS = np.array([7, 3, 1, 5])


@pytest.mark.parametrize("prompt_tokens", [0, 2, 4])
@pytest.mark.parametrize("pooling", list(Pooling))
def test_every_pooling_is_that_of_sentence_transformers(pooling, prompt_tokens):
    tokens = np.random.default_rng(3).normal(size=(4, 7, 6)).astype(np.float32)
    mask = (np.arange(7) < LENGTHS[:, None]).astype(np.int64)
    ours = pool(tokens, mask, pooling, prompt_tokens)
    theirs = TheirPooling(6, pooling.value, include_prompt=False)(
        {
            "token_embeddings": torch.from_numpy(tokens),
            "attention_mask": torch.from_numpy(mask),
            "prompt_length": prompt_tokens,
        }
    )["sentence_embedding"].numpy()
    some_left = prompt_tokens < LENGTHS
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs)[some_left].max() <= 1e-6
    assert not ours[~some_left].any()


@pytest.mark.parametrize("pooling", list(Pooling))
def test_what_stands_in_the_padding_does_not_matter(pooling):
    tokens = np.ones((1, 4, 2), np.float32)
    mask = np.array([[1, 1, 0, 0]])
    other = tokens.copy()
    other[:, 2:] = 1e30
    assert np.array_equal(pool(tokens, mask, pooling), pool(other, mask, pooling))
    assert not pool(tokens, mask * 0, pooling).any()


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)


@given(vectors=hnp.arrays(np.float32, SHAPES, elements=FINITE))
def test_a_normalized_vector_is_finite_and_has_length_one(vectors):
    # The length itself may be beyond float32 where every number is close to its end.
    vectors = np.clip(vectors, -1e37, 1e37)
    scaled = normalized(vectors)
    assert scaled.dtype == np.float32
    assert np.isfinite(scaled).all()
    real = np.linalg.norm(vectors.astype(np.float64), axis=1) > 1e-12
    assert np.linalg.norm(scaled[real], axis=1) == pytest.approx(1, abs=1e-5)


def test_zero_stays_zero_and_half_precision_does_not_overflow():
    assert not normalized(np.zeros((2, 3), np.float32)).any()
    assert normalized(np.zeros((0, 3), np.float32)).shape == (0, 3)
    half = np.full((1, 4), 60000, np.float16)
    assert normalized(half).tolist() == [[0.5] * 4]
    assert normalized(half).dtype == np.float32


@pytest.mark.parametrize("dimensions", [1, 5, 8])
def test_first_dimensions_are_taken_before_the_length_is(dimensions):
    vectors = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    ours = normalized(shortened(vectors, dimensions))
    theirs = torch.nn.functional.normalize(torch.from_numpy(vectors)[:, :dimensions]).numpy()
    assert np.abs(ours - theirs).max() <= 1e-6
    assert ours.flags.c_contiguous


@pytest.mark.parametrize("dimensions", [0, -1, 9])
def test_dimensions_that_a_vector_does_not_have_are_refused(dimensions):
    with pytest.raises(ConfigurationError, match="between 1 and the model's 8"):
        shortened(np.zeros((1, 8), np.float32), dimensions)
