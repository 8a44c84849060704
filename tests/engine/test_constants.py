"""Weights that are mostly zeros take little memory between the file and the program."""

import numpy as np
import pytest

from sparsify.engine.front.constants import Constants
from sparsify.engine.nonzeros import LARGE, Packed, by_row, count, find, packed


@pytest.mark.parametrize("density", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(64, LARGE // 64), (3, 5), (), (0, 4)])
def test_arrays_come_back_as_they_went_in(shape, density):
    rng = np.random.default_rng(0)
    array = np.asarray(rng.standard_normal(shape) * (rng.random(shape) < density), np.float32)
    constants = Constants()
    constants["w"] = array
    value = constants.chosen({"v": "w"}).value("v")
    assert (value.name, value.shape, value.dtype) == ("v", shape, "float32")
    np.testing.assert_array_equal(constants["w"], array)
    constants["w"][...] = 1  # a sparse one is a copy of its own
    is_packed = array.size >= LARGE and density < 0.5
    assert (constants["w"] == 1).all() != is_packed or array.size == 0


@pytest.mark.parametrize("shape", [(64, 128), (8, 16, 8, 8)])
def test_a_packed_weight_is_the_array_that_it_was(shape):
    rng = np.random.default_rng(1)
    array = np.asarray(rng.standard_normal(shape) * (rng.random(shape) < 0.2), np.float32)
    weight = packed(array)
    assert isinstance(weight, Packed)
    assert (weight.shape, weight.size, weight.ndim, len(weight)) == (shape, array.size, array.ndim, len(array))
    np.testing.assert_array_equal(np.asarray(weight), array)
    np.testing.assert_array_equal(np.asarray(weight, np.float64), array.astype(np.float64))
    matrix, dense = weight.reshape(len(weight), -1), array.reshape(len(array), -1)
    assert matrix.shape == dense.shape
    assert count(weight) == np.count_nonzero(array)
    for first, last in ((0, None), (3, len(dense) - 1)):
        chosen = dense[first:last]
        for found, there in zip(find(matrix, first, last), (*np.nonzero(chosen), chosen[chosen != 0]), strict=True):
            np.testing.assert_array_equal(found, there)
    for either in (matrix, dense):
        np.testing.assert_array_equal(by_row(either), (dense != 0).sum(axis=1))
