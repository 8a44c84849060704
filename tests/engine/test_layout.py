"""Layouts, and the copies between them."""

import ctypes
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify.engine.kernels import copy
from sparsify.engine.layout import LINE, Planes, up
from sparsify.engine.library import library
from sparsify.engine.memory import aligned
from sparsify.engine.plan import assign_layouts
from sparsify.engine.program import Convolution, Program, Value
from sparsify.engine.tuning import Tuning
from tests.engine.cases import levels, target


@st.composite
def layouts(draw, shape, splittable):
    n, c, h, w = shape
    lanes = draw(st.sampled_from([1, 1, 4, 16]))
    phases = kept = (1, 1)
    if lanes == 1 and splittable and draw(st.booleans()):
        phases = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        kept = phases if draw(st.booleans()) else (1, 1)
    rows, columns = -(-h // phases[0]), -(-w // phases[1])
    pitch = columns + draw(st.integers(0, 3))
    plane = (rows + draw(st.integers(0, 2))) * pitch
    lead = draw(st.integers(0, 20))
    tail = draw(st.integers(0, 5)) + (LINE if lanes == 1 else 0)
    fill = draw(st.sampled_from([0.0, -np.inf]))
    if n == lanes == 1 and not splittable and draw(st.booleans()):
        band = draw(st.integers(1, h))
        return Planes(n, c, h, w, lanes, pitch, band * pitch, 0, 0, fill=fill, band_height=band)
    return Planes(n, c, h, w, lanes, pitch, plane, up(lead, LINE) if lanes == 1 else lead, tail, phases, fill, kept)


@st.composite
def copies(draw):
    images = st.sampled_from([1, *range(1, 21)])
    shape = draw(st.tuples(images, st.integers(1, 4), st.integers(1, 9), st.integers(1, 40)))
    if draw(st.booleans()):
        shape = (*shape[:2], 1, 1)
    before = draw(st.none() | layouts(shape, splittable=False))
    after = draw(st.none() | layouts(shape, splittable=True))
    if before is not None and after is not None and before.lanes != after.lanes:
        after = None  # the lanes of a value follow from its batch: two kinds do not meet
    if after is not None and after.phases != (1, 1) and shape[2:] == (1, 1):
        after = None
    return shape, before, after


@settings(max_examples=300, deadline=None)
@given(copies(), st.sampled_from(levels()))
def test_copy_is_what_the_definition_says(case, level):
    shape, before, after = case
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    source = before.pack(array) if before else array.ravel().copy()
    size = after.size if after else array.size
    guard = 64
    result = np.full(size + 2 * guard, 7.0, np.float32)
    inside = result[guard : guard + size]
    inside[:] = after.fill if after else 0
    stage = copy.copy_stage("v", shape, before, after)
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(
        library(target(level), copy).address(stage.function)
    )
    buffers = np.array([source.ctypes.data, inside.ctypes.data])
    constants = np.array([c.ctypes.data for c in stage.constants])
    for tile in range(stage.tiles):
        run(buffers.ctypes.data, constants.ctypes.data, tile)
    np.testing.assert_array_equal(inside, after.pack(array) if after else array.ravel())
    assert (result[:guard] == 7).all() and (result[-guard:] == 7).all(), "wrote outside the buffer"


@pytest.mark.parametrize("size", [14, 112, 28])
def test_halves_of_an_image_share_a_line_only_to_save_vectors(size):
    value = {name: Value(name, (1, 2, size, size)) for name in "xy"}
    layer = Convolution("x", "y", np.ones((2, 2, 3, 3), np.float32), np.zeros(2, np.float32), padding=(1, 1, 1, 1))
    program = Program((value["x"],), ("y",), (layer,), value)
    input = assign_layouts(program, target("generic"), Tuning(), 2)["x"]
    least = up(size * (size + 1), LINE)  # with one position between rows
    apart = size // 2 * input.pitch % LINE == 0
    assert apart == (size != 28)
    assert up(size * input.pitch, LINE) <= 1.01 * least


@pytest.mark.parametrize(("size", "threads", "pitch"), [(14, 2, 16), (14, 1, 14), (28, 2, 28), (56, 2, 56)])
def test_without_borders_halves_may_lie_apart_where_bands_have_as_many_vectors(size, threads, pitch):
    value = {name: Value(name, (1, 2, size, size)) for name in "xy"}
    layer = Convolution("x", "y", np.ones((2, 2, 1, 1), np.float32), np.zeros(2, np.float32))
    program = Program((value["x"],), ("y",), (layer,), value)
    assert assign_layouts(program, target("generic"), Tuning(), threads)["x"].pitch == pitch


def test_channels_do_not_fall_into_the_same_sets():
    layout = Planes(1, 8, 16, 16, 1, 16, 256, 0, 0)
    assert layout.channel // LINE % 2 == 1


@pytest.mark.parametrize("count", [1, 1000])
def test_aligned(count):
    assert aligned(count).ctypes.data % 64 == 0


def test_positions_of_an_image_in_bands_are_all_there_once():
    planes = Planes(1, 3, 10, 5, 1, 6, 4 * 6, 0, 0, band_height=4)
    places = planes.index()
    assert len(np.unique(places)) == places.size and places.max() < planes.size
    assert planes.bands == 3
    np.testing.assert_array_equal(places[0, 0, :, 0], [planes.row(number) for number in range(10)])
    halves = [places[0, :, rows] for rows in (slice(0, 4), slice(4, 8), slice(8, 10))]
    assert all(before.max() < after.min() for before, after in pairwise(halves))


def test_many_channels_lie_in_bands_where_nothing_looks_around():
    def layouts(channels, kernel):
        shape = (1, channels, 28, 28)
        weight = np.eye(channels, dtype=np.float32)[:, :, None, None] * np.ones((1, 1, *kernel), np.float32)
        first = Convolution("x", "a", weight[:, :, :1, :1], np.zeros(channels, np.float32))
        edge = kernel[0] // 2
        second = Convolution("a", "y", weight, np.zeros(channels, np.float32), padding=(edge,) * 4)
        program = Program((Value("x", shape),), ("y",), (first, second), {name: Value(name, shape) for name in "xay"})
        return assign_layouts(program, target("generic"), Tuning(), 2)

    assert {name for name, planes in layouts(256, (1, 1)).items() if planes.bands > 1} == {"a"}
    assert layouts(256, (1, 1))["a"].band_rows * layouts(256, (1, 1))["a"].pitch % LINE == 0
    assert {planes.bands for planes in layouts(256, (3, 3)).values()} == {1}
    assert {planes.bands for planes in layouts(16, (1, 1)).values()} == {1}
