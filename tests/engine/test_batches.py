"""Batches in parts give what the whole batch gives, and only programs that allow it are cut."""

import numpy as np
import pytest

from sparsify.engine.batches import Batches, part_size
from sparsify.engine.compile import compile_program
from sparsify.engine.program import Elementwise, Linear, Rearrange, Reduce, Softmax
from sparsify.engine.tuning import Tuning
from tests.engine.cases import check, convolution, linear, program
from tests.engine.test_runtime import network

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [2, 6, 16, 48])
def test_parts(n):
    tuning = Tuning(batch_bytes=60_000)
    given = network(n)
    executable = compile_program(given, 2, tuning=tuning)
    assert isinstance(executable, Batches)
    assert executable.bytes < compile_program(given, 2, tuning=Tuning(batch_bytes=1 << 40)).bytes
    rows = check(given, tuning=tuning)
    assert all("parts of the batch" in row.why for row in rows)


def test_whole_vectors_of_images_where_possible():
    given = network(48)
    largest = 4 * 48 * (3 * 40 * 36 + 16 * 20 * 18)
    assert part_size(given, 16, largest) == 48
    assert part_size(given, 16, largest // 2) == 16
    assert part_size(given, 16, largest // 12) == 4
    assert part_size(given, 16, largest // 40) == 1
    assert part_size(given, 16, 1) == 48, "the weights alone are larger than that"


@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (Softmax("x", "y", 0), dict.fromkeys("xy", (8, 5))),
        (Softmax("x", "y", -2), dict.fromkeys("xy", (8, 5))),
        (Reduce("mean", "x", "y", (0, 1)), {"x": (8, 5), "y": (8, 5)}),
        (Rearrange("transpose", ("x",), "y", {"perm": (1, 0)}), dict.fromkeys("xy", (8, 8))),
        (Elementwise("add", ("x", np.ones((8, 5), np.float32)), "y"), dict.fromkeys("xy", (8, 5))),
        (Elementwise("add", ("x", "z"), "y"), {"x": (8, 8, 8), "z": (8, 8), "y": (8, 8, 8)}),
        (Linear("x", "y", np.ones((8, 8), np.float32), np.ones(8, np.float32)), dict.fromkeys("xy", (8,))),
    ],
)
def test_programs_that_mix_images_stay_whole(operation, shapes):
    given = program([operation], shapes, ["y"])
    assert part_size(given, 16, 1) == 8


def test_one_linear_is_cut():
    assert part_size(linear(RNG, leading=(3200,)), 16, 16 * 40 * 4) == 16


@pytest.mark.parametrize(("density", "parts"), [(1.0, 4), (0.2, 16)])
def test_dense_convolutions_get_one_image_after_another(density, parts):
    given = convolution(RNG, n=16, density=density)
    assert part_size(given, 16, 4 << 20) == parts
