"""The kernel library: every kernel's native functions, compiled once for a CPU and kept on disk."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import threading
from functools import cache
from pathlib import Path
from types import ModuleType

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from sparsify.engine import cache as disk
from sparsify.engine import kernels, runtime_ir
from sparsify.engine.ir import Module
from sparsify.engine.target import Target

_LOCK = threading.Lock()


@cache
def kernel_files(package: ModuleType = kernels) -> dict[str, ModuleType]:
    """Every kernel by the name of its file: a new kernel is found by being there."""
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    return {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}


class Library:
    """Addresses of native functions by name: the runtime's and those of a package of kernels."""

    def __init__(self, target: Target, package: ModuleType = kernels) -> None:
        self.target = target
        machine = llvm.Target.from_triple(target.triple).create_target_machine(
            target.cpu, target.features, opt=3, jit=True
        )
        key = _key(target, package)
        code = disk.fetch(key)
        if code is None:
            code = _compile(_assemble(target, package), machine)
            disk.keep(key, code)
        empty = llvm.parse_assembly("")
        empty.triple = target.triple
        self._engine = llvm.create_mcjit_compiler(empty, machine)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()

    def address(self, function: str) -> int:
        """Where a function is; 0 where there is none of this name."""
        return self._engine.get_function_address(function)


def library(target: Target, package: ModuleType = kernels) -> Library:
    """The library of a package's kernels for `target`, compiled or fetched from disk at the first call."""
    with _LOCK:
        return _library(target, package)


@cache
def _library(target: Target, package: ModuleType) -> Library:
    return Library(target, package)


def _key(target: Target, package: ModuleType) -> str:
    """What the library's code depends on: the target, LLVM, and all source that may take part in writing it, which
    is sooner read than run."""
    digest = hashlib.sha256("\n".join((package.__name__, llvmlite.__version__, *map(str, target.key))).encode())
    for folder in sorted({Path(__file__).parent, *(Path(path).parent for path in package.__path__)}):
        for source in sorted(folder.rglob("*.py")):
            content = source.read_bytes()
            digest.update(f"{source.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _assemble(target: Target, package: ModuleType) -> str:
    module = Module(ir.Module("sparsify"), target)
    module.llvm.triple = target.triple
    runtime_ir.emit(module)
    for file in kernel_files(package).values():
        if hasattr(file, "emit"):
            file.emit(module)
    return str(module.llvm)


def _compile(text: str, machine: llvm.TargetMachine) -> bytes:
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = False  # the kernels are vectors already
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module)
