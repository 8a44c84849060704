"""Threads: any number of them, several programs at once, one program from several threads, after a pause."""

import gc
import os
import threading
import time

import numpy as np
import pytest

from sparsify.engine.compile import compile_program
from sparsify.engine.interpreter import interpret
from sparsify.engine.numpy_ops import compute
from sparsify.engine.program import (
    Convolution,
    Elementwise,
    Epilogue,
    Gather,
    Linear,
    Pool,
    Rearrange,
    Reduce,
)
from tests.engine.cases import check, convolution, levels, program, sparse, target

RNG = np.random.default_rng(0)


def conv(source, to, c, o, k=3, residual=None, stride=1, groups=1):
    weight = sparse(RNG, (o, c // groups, k, k), 0.3)
    bias = RNG.standard_normal(o).astype(np.float32)
    pad = (k // 2,) * 4
    return Convolution(source, to, weight, bias, (stride, stride), pad, (1, 1), groups, Epilogue(residual, 0.0))


def network(n):
    """A small residual network: strides, residuals, a depthwise layer, pools, a classifier."""
    operations = [
        conv("x", "a", 3, 16, k=7, stride=2),
        Pool("max", "a", "b", (3, 3), (2, 2), (1, 1, 1, 1)),
        conv("b", "c", 16, 16),
        conv("c", "d", 16, 16, residual="b"),
        conv("d", "e", 16, 32, k=3, stride=2),
        conv("d", "f", 16, 32, k=1, stride=2),
        conv("e", "g", 32, 32, residual="f", groups=32),
        Elementwise("relu", ("g",), "h"),
        Elementwise("add", ("h", "f"), "i"),
        Reduce("mean", "i", "j", (2, 3)),
        Rearrange("reshape", ("j",), "k"),
        Linear("k", "y", sparse(RNG, (10, 32), 0.5), np.zeros(10, np.float32)),
    ]
    shapes = {
        "x": (n, 3, 40, 36), "a": (n, 16, 20, 18), **dict.fromkeys("bcd", (n, 16, 10, 9)),
        **dict.fromkeys("efghi", (n, 32, 5, 5)),
        "j": (n, 32, 1, 1), "k": (n, 32), "y": (n, 10),
    }  # fmt: skip
    return program(operations, shapes, ["y", "d"])


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("n", [1, 2, 3, 8, 16, 33])
def test_network(level, n):
    check(network(n), level)


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 17])
def test_threads(threads):
    check(network(2), threads=threads, runs=20)


def test_everything_is_native_but_what_has_no_kernel():
    rows = check(network(1))
    assert "python" not in {row.kernel for row in rows}
    assert all(row.measured >= 0 and row.why for row in rows)


def test_numpy_between_native_stages():
    table = RNG.standard_normal((2, 3, 9, 9)).astype(np.float32)
    operations = [
        conv("x", "a", 3, 3),
        Gather("a", np.array([2, 0, 1]), "b", 1),
        conv("b", "c", 3, 3),
        Elementwise("mul", ("c", "t"), "y"),
    ]
    given = program(operations, dict.fromkeys("xabcyt", (2, 3, 9, 9)), ["y", "b"])
    check(given)
    constant = type(given)(given.inputs[:1], given.outputs, given.operations, given.values, {"t": table})
    check(constant)


def test_arrays_belong_to_the_caller():
    given = program([conv("x", "y", 3, 4)], {"x": (1, 3, 9, 9), "y": (1, 4, 9, 9)}, ["y"])
    executable = compile_program(given, 2)
    x = np.asfortranarray(RNG.standard_normal((1, 3, 9, 9)).astype(np.float32))
    before = x.copy()
    y = executable.run([x])[0]
    np.testing.assert_array_equal(x, before)
    first = y.copy()
    executable.run([x * 0])
    np.testing.assert_array_equal(y, first, err_msg="an output belongs to its caller")


def test_one_program_from_several_threads_and_several_programs_at_once():
    given = [convolution(RNG, size=(20, 20)), convolution(RNG, c=5, size=(9, 30))]
    executables = [compile_program(p, 2) for p in given]
    failures = []

    def work(number):
        p, executable = given[number % 2], executables[number % 2]
        rng = np.random.default_rng(number)
        for _ in range(30):
            x = rng.standard_normal(p.inputs[0].shape).astype(np.float32)
            if not np.allclose(executable.run([x])[0], interpret(p, {"x": x})["y"], rtol=1e-3, atol=1e-4):
                failures.append(number)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_parked_workers_wake():
    given = convolution(RNG)
    executable = compile_program(given, 4)
    x = np.ones(given.inputs[0].shape, np.float32)
    first = executable.run([x])[0]
    for pause in (0.0, 0.001, 0.02, 0.2):
        time.sleep(pause)
        np.testing.assert_array_equal(executable.run([x])[0], first)


def test_programs_come_and_go():
    given = convolution(RNG)
    x = np.ones(given.inputs[0].shape, np.float32)
    for _ in range(30):
        compile_program(given, 3).run([x])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork():
    given = convolution(RNG)
    x = np.ones(given.inputs[0].shape, np.float32)
    expected = compile_program(given, 2).run([x])[0]
    child = os.fork()
    if child == 0:
        same = np.array_equal(compile_program(given, 2).run([x])[0], expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_targets():
    assert [target(level).level for level in levels()] == levels()


def test_garbage_collected_in_the_middle_of_a_run(monkeypatch):
    """Executables that go while another one runs, in the same thread and under the pool's lock."""

    def compute_and_collect(*arguments):
        garbage = [compile_program(convolution(RNG), 2)]
        garbage.append(garbage)  # a cycle, so that only the collector frees it
        del garbage
        gc.collect()
        return compute(*arguments)

    monkeypatch.setattr("sparsify.engine.compile.compute", compute_and_collect)
    given = program([conv("x", "a", 3, 3), Gather("a", np.array([2, 0, 1]), "y", 1)],
                    dict.fromkeys("xay", (2, 3, 9, 9)), ["y"])  # fmt: skip
    check(given, runs=5)


def test_empty_batch():
    given = convolution(RNG, n=0)
    assert compile_program(given, 2).run([np.zeros((0, 8, 9, 9), np.float32)])[0].shape == (0, 8, 9, 9)
