"""Which memory values share: never two at a time, hardly more than lives at once, borders as they must be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify.engine.compile import compile_program
from sparsify.engine.executable import Executable
from sparsify.engine.kernels.borders import gaps
from sparsify.engine.layout import Planes
from sparsify.engine.memory_plan import MemoryPlan, byte_size
from sparsify.engine.program import Value
from sparsify.engine.tuning import Tuning
from tests.engine.cases import check, feeds, levels, program, target
from tests.engine.test_runtime import conv, network

SHARED = Tuning(border_bytes=1)  # no borders are kept
KEPT = Tuning(border_share=1e-9)  # all are


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("images", [1, 16, 20])
@pytest.mark.parametrize("tuning", [SHARED, Tuning(border_bytes=1, band_bytes=2000, panel=3)], ids=["whole", "bands"])
def test_networks_whose_values_share_memory(level, images, tuning):
    rows = check(network(images), level, tuning=tuning, runs=3)
    assert any(row.operation == "borders" for row in rows)


def test_what_takes_turns_is_written_over_what_was_read():
    executable = compile_program(network(16), 2, tuning=Tuning(border_bytes=1, band_bytes=2000, panel=3))
    plan = executable._plan
    assert any(plan.over(slot) for slot in range(len(plan._slots)))


def assert_the_same_with_garbage(executable, case, buffers):
    arrays = feeds(case, np.random.default_rng(0))
    first = executable.run(arrays)
    for buffer in buffers:
        buffer[:] = 0xFF  # each number is NaN
    for one, other in zip(first, executable.run(arrays), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("images", [1, 3, 16])
def test_memory_that_held_anything_is_as_good_as_new(images, level):
    case = network(images)
    executable = compile_program(case, 2, target(level), tuning=SHARED)
    assert isinstance(executable, Executable)
    assert_the_same_with_garbage(executable, case, executable._plan._buffers)


def bottleneck(n):
    """Convolutions of 1 x 1, also with a stride, around one of 3 x 3."""
    operations = [
        conv("x", "a", 3, 16, k=1),
        conv("a", "b", 16, 8, k=1),
        conv("b", "c", 8, 8, k=3),
        conv("c", "d", 8, 16, k=1, residual="a"),
        conv("d", "y", 16, 16, k=1, stride=2),
    ]
    shapes = {"x": (n, 3, 11, 13), "a": (n, 16, 11, 13), **dict.fromkeys("bc", (n, 8, 11, 13)), "d": (n, 16, 11, 13)}
    return program(operations, shapes | {"y": (n, 16, 6, 7)}, ["y"])


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("images", [1, 3, 16])
def test_only_borders_that_are_read_hold_anything(images, level):
    case = bottleneck(images)
    executable = compile_program(case, 2, target(level), tuning=KEPT)
    assert isinstance(executable, Executable)
    plan = executable._plan
    assert {place[0] for place, number in plan._of.items() if plan._slots[number].is_kept} == {"b"}
    spoilt = [buffer for slot, buffer in zip(plan._slots, plan._buffers, strict=True) if not slot.is_kept]
    assert_the_same_with_garbage(executable, case, spoilt)


@st.composite
def graphs(draw):
    """Steps that each read some earlier values and write a new one, in C order."""
    count = draw(st.integers(1, 12))
    values = [Value(f"v{i}", (draw(st.integers(1, 500)),)) for i in range(count)]
    steps = []
    for i, value in enumerate(values):
        reads = draw(st.lists(st.sampled_from(values[:i]), max_size=2)) if i else []
        steps.append(([(v.name, None) for v in reads], [(value.name, None)], None))
    return values, steps


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_values_that_live_at_once_lie_apart(case):
    values, steps = case
    plan = MemoryPlan({v.name: v for v in values}, steps, set(), set(), set(), SHARED)
    plan.settle([])
    for number, (reads, writes, _) in enumerate(steps):
        for place in writes:
            plan.buffer(place)[:] = number
        for place in reads:
            written = next(i for i, step in enumerate(steps) if place in step[1])
            assert np.all(plan.buffer(place) == written)


def test_a_network_s_plan_is_hardly_larger_than_what_lives_at_once():
    """Blocks of a residual network that shrinks: three values at a time, each stage's half as large."""
    values, steps, before = [Value("x", (1 << 16,))], [([], [("x", None)], None)], "x"
    for block in range(12):
        size = 1 << (16 - block // 3)
        for name, reads in (("a", [before]), ("b", [f"a{block}"]), ("c", [f"b{block}", before])):
            values.append(Value(f"{name}{block}", (size // (1 if name == "c" else 4),)))
            steps.append(([(r, None) for r in reads], [(values[-1].name, None)], None))
        before = f"c{block}"
    plan = MemoryPlan({v.name: v for v in values}, steps, set(), set(), set(), SHARED)
    plan.settle([])
    sizes = {v.name: byte_size(v) for v in values}
    last = {place: number for number, step in enumerate(steps) for place in (*step[0], *step[1])}
    first = {step[1][0]: number for number, step in enumerate(steps)}
    alive = max(
        sum(sizes[p[0]] for p in first if first[p] <= number <= last[p]) for number in range(len(steps))
    )  # fmt: skip
    assert alive <= plan.bytes <= 1.1 * alive


@pytest.mark.parametrize(
    "layout",
    [
        Planes(2, 3, 5, 4, 1, 6, 42, 16, 40),
        Planes(3, 2, 5, 5, 1, 4, 20, 16, 40, (2, 2)),
        Planes(20, 3, 5, 4, 16, 5, 30, 6, 6, fill=-1.0),
    ],
    ids=["positions", "phases", "images"],
)
def test_gaps_are_all_but_the_elements(layout):
    there = np.zeros((layout.channels, layout.channel) if layout.lanes == 1 else (1, layout.size), bool)
    for start, length in gaps(layout):
        there[:, start : start + length] = True
    elements = np.zeros(layout.size, bool)
    elements[layout.index()] = True
    inside = there.reshape(-1)
    assert not np.any(inside & elements)
    if layout.lanes == 1:
        between = {(int(start), int(length)) for start, length in gaps(layout, filled=True)}
        assert between < {(int(start), int(length)) for start, length in gaps(layout)}
        assert len(between) == layout.images * layout.split[0] * layout.split[1] + 1
    step = layout.step
    blocks = elements if layout.lanes == 1 else np.repeat(elements.reshape(-1, step).any(1), step)
    np.testing.assert_array_equal(inside, ~blocks)
