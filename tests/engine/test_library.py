"""Compiled functions: from the linked image in the cache and from LLVM's linker, and what a process need not load."""

import ctypes
import os
import subprocess
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from sparsify.engine import library, linking, target
from sparsify.engine.kernels import rows

# A constant of its own, a C function from outside, and a call of a function beside it.
SOURCE = """
@table = private constant [3 x i64] [i64 30, i64 40, i64 50]
declare ptr @memset(ptr, i32, i64)
define i64 @at(i64 %index) noinline {
  %place = getelementptr [3 x i64], ptr @table, i64 0, i64 %index
  %value = load i64, ptr %place
  ret i64 %value
}
define i64 @ones(ptr %bytes, i64 %count) {
  %same = call ptr @memset(ptr %bytes, i32 1, i64 %count)
  %value = call i64 @at(i64 2)
  ret i64 %value
}
"""
WRITABLE = "@state = global i64 7\ndefine i64 @next() {\n %v = load i64, ptr @state\n ret i64 %v\n}\n"


def compiled(text: str) -> bytes:
    host = target.host()
    return library._compile(f'target triple = "{host.triple}"\n{text}', host)


def called(address) -> tuple[int, bytes]:
    memory = ctypes.create_string_buffer(6)
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(address("ones"))
    return function(ctypes.addressof(memory), 4), memory.raw


def test_image_and_llvm_s_linker_agree():
    code = compiled(SOURCE)
    image = linking.link(code)
    by_llvm = library._loaded_by_llvm(code, target.host())
    assert called(by_llvm) == (50, b"\1\1\1\1\0\0")
    if target.host().triple.startswith("x86_64") and "linux" in target.host().triple:
        assert image is not None and set(image.functions) == {"at", "ones"} and set(image.outside) == {"memset"}
        address = library._loaded(linking.Image.read(image.dump()))
        assert called(address) == (50, b"\1\1\1\1\0\0")
        assert address("none of this name") == by_llvm("none of this name") == 0


@pytest.mark.parametrize("what", ["other machine", "other format", "data that is written to"])
def test_what_is_not_known_is_left_to_llvm(what):
    code = bytearray(compiled(WRITABLE if what == "data that is written to" else SOURCE))
    if what == "other machine":
        code[18:20] = b"\xff\xff"
    elif what == "other format":
        code[:4] = b"MACH"
    assert linking.link(bytes(code)) is None
    assert linking.Image.read(bytes(code)) is None


def test_a_process_that_finds_code_in_the_cache_loads_no_compiler():
    library.library(target.host(), rows)  # now it is in the cache
    if library.Image.read(library.disk.fetch(library._key(target.host(), rows)) or b"") is None:
        pytest.skip("this system's object files are linked by LLVM")
    loads = "from sparsify.engine import library, target; from sparsify.engine.kernels import rows"
    then = "import sys; library.library(target.host(), rows); print('llvmlite.binding' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", f"{loads}; {then}"], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_a_process_compiles_what_its_model_needs(tmp_path):
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x0", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x0"], ["y"])], "relu", ports[:1], ports[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "relu.onnx"
    )
    run = "import numpy, sys; from sparsify.engine import InferenceSession, library; "
    run += "InferenceSession(sys.argv[1]).run(None, {'x0': numpy.ones((2, 3), numpy.float32)}); "
    run += "print(library._library.cache_info().currsize)"
    command = [sys.executable, "-c", run, str(tmp_path / "relu.onnx")]
    cache = tmp_path / "cache"
    for _ in range(2):  # compiled, then read
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"XDG_CACHE_HOME": str(cache)}
        )
        assert found.stdout == "2\n"  # of the runtime and of elementwise functions
        assert len(list((cache / "sparsify").iterdir())) == 3  # and what the CPU is called
