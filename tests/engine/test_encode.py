"""Instructions that are written as bytes, run on this machine."""

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsify.engine.encode import R10, RAX, RETURN, encoder, move
from sparsify.engine.memory import Code
from sparsify.engine.target import host

ENCODER = encoder(host().level)
WITHIN = 9 << 10  # floats on both sides of where the pointer begins

pytestmark = pytest.mark.skipif(ENCODER is None, reason="there is no encoder for this CPU")


def run(body: bytes, here: np.ndarray, there: np.ndarray) -> None:
    """Run instructions with rax at the middle of `here` and r10 at the begin of `there`."""
    begin = b"\x48\x89\xf8\x49\x89\xf2"  # mov rax, rdi; mov r10, rsi
    code = Code.of(begin + body + RETURN)
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(code.address)
    function(here.ctypes.data + 4 * WITHIN, there.ctypes.data)


@given(
    registers=st.lists(st.integers(0, 12), min_size=1, max_size=5, unique=True),
    moved=st.integers(-WITHIN // 2, WITHIN // 2),
    step=st.sampled_from([1, 8, 16]),  # floats: only some displacements are short
    data=st.data(),
)
def test_a_vector_is_loaded_from_any_distance(registers, moved, step, data):
    width = ENCODER.width
    most = (WITHIN // 2 - width) // step
    places = [step * data.draw(st.integers(-most, most)) for _ in registers]
    here, there = np.arange(2 * WITHIN, dtype=np.float32), np.zeros((13, width), np.float32)
    longest = ENCODER.load(np.array([0]), RAX, np.array([4])).shape[1]
    loads = [ENCODER.load(np.array([r]), RAX, np.array([4 * at])) for r, at in zip(registers, places, strict=True)]
    for load, at in zip(loads, places, strict=True):
        assert (load.shape[1] < longest) == (ENCODER.reach > 0 and at % 16 == 0 and -128 <= at // 16 < 128)
    stores = ENCODER.store(np.array(registers), R10, np.array(registers) * width * 4, whole=True)
    run(move(RAX, np.array([4 * moved])).tobytes() + b"".join(x.tobytes() for x in (*loads, stores)), here, there)
    expected = np.zeros_like(there)
    for register, at in zip(registers, places, strict=True):
        expected[register] = here[WITHIN + moved + at :][:width]
    np.testing.assert_array_equal(there, expected)
