"""Minimal filters against the sums that they stand for."""

import numpy as np
import pytest

from sparsify.engine.filtering import minimal_filter


@pytest.mark.parametrize(("m", "r"), [(1, 1), (2, 3), (4, 3), (4, 4), (3, 5), (6, 2)])
def test_filters_are_correlations(m, r):
    rng, filter = np.random.default_rng(0), minimal_filter(m, r)
    d, g = rng.standard_normal(m + r - 1), rng.standard_normal(r)
    products = (filter.taps @ g) * (filter.inputs @ d)
    assert len(products) == m + r - 1
    np.testing.assert_allclose(filter.outputs @ products, np.correlate(d, g), atol=1e-12)


def test_only_the_last_product_sees_the_last_input_and_tap():
    filter = minimal_filter(4, 4)
    assert not filter.inputs[:-1, -1].any()
    assert filter.taps[-1].tolist() == [0, 0, 0, 1]
