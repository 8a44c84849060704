"""Large weights stay in their file until a kernel takes them, and the file may go but not change."""

import os
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import onnx
import pytest

from sparsify.engine import InferenceSession
from sparsify.engine.front import build, load, tensors
from sparsify.engine.nonzeros import LARGE, count, find
from sparsify.engine.unread import Bytes, Unread, counted
from sparsify.errors import EngineError

SHAPE = (72, 64)
TEXT = "g (float[n,64] x) => (float[] y) { y = Gemm <transB = 1> (x, w) }"


@pytest.fixture
def weight(sparse):
    return sparse(*SHAPE)


@pytest.fixture
def path(make_model, weight, tmp_path):
    """A model file whose one weight is large."""
    assert weight.size >= LARGE
    path = tmp_path / "model.onnx"
    path.write_bytes(make_model(TEXT, {"w": weight}))
    return path


def run(session, n=3):
    x = np.random.default_rng(n).standard_normal((n, SHAPE[1])).astype(np.float32)
    return x, session.run(None, {"x": x})[0]


def assert_product(session, weight, n=3):
    x, y = run(session, n)
    np.testing.assert_allclose(y, x.astype(np.float64) @ weight.T.astype(np.float64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("part", [1, 100, 1 << 18])
def test_it_is_read_as_it_was_stored(dtype, part, weight, monkeypatch):
    monkeypatch.setattr("sparsify.engine.unread._PART", part)
    stored = np.where(weight == 0, -0.0, weight).astype(dtype)
    expected = stored.astype(np.float32)
    unread = counted(Unread(SHAPE, Bytes(b"head" + stored.tobytes()), 4, np.dtype(dtype)))
    found = np.asarray(unread)
    np.testing.assert_array_equal(found, expected)
    assert not np.signbit(found[found == 0]).any()
    assert (unread.size, unread.ndim, len(unread), count(unread)) == (weight.size, 2, 72, np.count_nonzero(expected))
    np.testing.assert_array_equal(unread.reshape(-1, 32)[3:7], expected.reshape(-1, 32)[3:7])
    for first, last in ((0, None), (5, 70)):
        chosen = expected[first:last]
        for ours, theirs in zip(find(unread, first, last), (*np.nonzero(chosen), chosen[chosen != 0]), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_program_reads_nothing(path, weight):
    (operation,) = build(load(path), {"x": (1, SHAPE[1])}).operations
    assert isinstance(operation.weight, Unread)
    np.testing.assert_array_equal(np.asarray(operation.weight), weight)


@pytest.mark.parametrize("gone", [lambda path: path.unlink(), lambda path: (path.parent / "new").replace(path)])
def test_a_file_may_be_deleted_or_replaced(path, weight, gone):
    session = InferenceSession(path, threads=1)
    (path.parent / "new").write_bytes(b"another model")
    gone(path)
    for n in (1, 3):
        assert_product(session, weight, n)


def write_shorter(path):
    os.truncate(path, path.stat().st_size // 2)


def write_in_place(path):
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        file.write(bytes(8))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))  # a clock may be coarser than this test is fast


@pytest.mark.parametrize("change", [write_shorter, write_in_place])
def test_a_file_that_is_written_to_is_refused(path, weight, change):
    session = InferenceSession(path, threads=1)
    assert_product(session, weight)
    change(path)
    assert_product(session, weight)  # compiled already
    with pytest.raises(EngineError, match=r"model\.onnx' was written to after .* Open it again"):
        run(session, n=4)


@pytest.mark.parametrize("most", [0, 64])
def test_external_data_stay_in_their_file(make_model, weight, most, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "MOST_OPEN", most)
    model = onnx.load_from_string(make_model(TEXT, {"w": weight}))
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    session = InferenceSession(tmp_path / "m.onnx", threads=1)
    write_shorter(tmp_path / "m.bin")
    if most:
        with pytest.raises(EngineError, match=r"m\.bin' was written to"):
            run(session)
    else:
        assert_product(session, weight)


def test_nothing_stays_open(path):
    session = InferenceSession(path, threads=1)
    run(session)
    descriptor = session._graph.constants.stored("w").source.descriptor
    assert os.fstat(descriptor).st_size == path.stat().st_size
    del session
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_threads_read_at_once(path, weight):
    session, failures = InferenceSession(path, threads=1), []

    def call(n):
        try:
            assert_product(session, weight, n)
            assert_product(InferenceSession(path, threads=1), weight, n)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


MEASURE = """
import sys
from pathlib import Path
import numpy as np
from sparsify.engine import InferenceSession
from sparsify.engine.memory import give_back

def kilobytes(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

InferenceSession(sys.argv[1], threads=1).run(None, {"x": np.zeros((3, 64), np.float32)})  # all code is there now
give_back()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
InferenceSession(sys.argv[2], threads=1).run(None, {"x": np.zeros((int(sys.argv[3]), 2048), np.float32)})
print(kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory where Linux tells it")
@pytest.mark.parametrize(("density", "images", "most"), [(1.0, 1, 1.35), (1.0, 64, 1.5), (0.1, 64, 1.0)])
def test_weights_are_in_memory_once(make_model, path, tmp_path, density, images, most):
    """At the peak of loading and running a model of four layers: `most` times what its weights take in the file."""
    rng = np.random.default_rng(0)
    weights = {}
    for name in ("a", "b", "c", "d"):
        weights[name] = rng.random((2048, 2048), np.float32)
        weights[name] *= rng.random((2048, 2048), np.float32) < density
    layers = zip(weights, ("x", "h", "i", "j"), ("h", "i", "j", "y"), strict=True)
    text = " ".join(f"{output} = Gemm <transB = 1> ({input}, {name})" for name, input, output in layers)
    large = tmp_path / "large.onnx"
    large.write_bytes(make_model(f"g (float[n,2048] x) => (float[] y) {{ {text} }}", weights))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, path, large, str(images)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < most * large.stat().st_size
