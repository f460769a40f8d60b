import numpy as np
import pytest

from services.embedding.process.quantize import Dtype, quantized, reach


def unit_vectors(dimensions: int) -> np.ndarray:
    vectors = np.random.default_rng(dimensions).normal(size=(64, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("dimensions", [8, 64, 384, 1024, 4096])
@pytest.mark.parametrize("dtype", [Dtype.INT8, Dtype.UINT8])
def test_whole_numbers_point_where_the_vector_points(dtype: Dtype, dimensions: int) -> None:
    vectors = unit_vectors(dimensions)
    rows = quantized(vectors, dtype).astype(np.float64)
    numbers = (rows - 128 if dtype is Dtype.UINT8 else rows) * reach(dimensions) / 127
    cosines = np.sum(numbers * vectors, axis=1) / np.linalg.norm(numbers, axis=1)
    assert cosines.min() >= 0.99
    # One scale for all vectors: so numbers of different vectors compare, too.
    assert np.abs(numbers @ numbers.T - vectors @ vectors.T).max() < 0.02


def test_a_vector_of_one_large_number_is_not_cut() -> None:
    vector = np.zeros((1, 256), np.float32)
    vector[0, 3] = 1.0
    assert quantized(vector, Dtype.INT8)[0, 3] == 127


def test_bits_are_the_signs_first_number_highest() -> None:
    vectors = np.array([[1, -1, 0, 1, 1, 1, 1, 1, -1, 1]], np.float32)
    assert quantized(vectors, Dtype.UBINARY).tolist() == [[0b10011111, 0b01000000]]
    assert quantized(vectors, Dtype.BINARY).tolist() == [[0b10011111 - 128, 0b01000000 - 128]]


@pytest.mark.parametrize("dtype", Dtype)
def test_rows_are_contiguous_whatever_the_vectors_are(dtype: Dtype) -> None:
    vectors = unit_vectors(32)[:, ::2]
    rows = quantized(vectors, dtype)
    assert rows.flags.c_contiguous
    assert len(rows) == len(vectors)
