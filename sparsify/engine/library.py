"""Libraries of native functions: a kernel file's, the runtime's or a whole package's, compiled once for a CPU and kept
on disk. A process compiles those that its models need."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib
import pkgutil
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import llvmlite
from llvmlite import ir

from sparsify.engine import cache as disk
from sparsify.engine import kernels
from sparsify.engine.ir import Module
from sparsify.engine.linking import Image, link
from sparsify.engine.memory import Code, give_back
from sparsify.engine.target import Target

_LOCK = threading.Lock()


@cache
def kernel_files(package: ModuleType = kernels) -> dict[str, ModuleType]:
    """Every kernel by the name of its file: a new kernel is found by being there."""
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    return {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}


class Library:
    """Addresses of native functions by name: those that a module emits, or all modules of a package."""

    def __init__(self, target: Target, source: ModuleType) -> None:
        self.target = target
        key = _key(target, source)
        code = disk.fetch(key)
        if code is None:
            code = _compile(_assemble(target, source), target)
            image = link(code)
            code = image.dump() if image is not None else code
            disk.keep(key, code)
            gc.collect()  # what was written is a web of objects
            give_back()
        image = Image.read(code)
        self.address: Callable[[str], int]  # where a function is; 0 where there is none of this name
        self.address = _loaded(image) if image is not None else _loaded_by_llvm(code, target)


def library(target: Target, source: ModuleType) -> Library:
    """The library of a module or package for `target`, compiled or fetched from disk at the first call."""
    with _LOCK:
        return _library(target, source)


@cache
def _library(target: Target, source: ModuleType) -> Library:
    return Library(target, source)


def _key(target: Target, source: ModuleType) -> str:
    """What a library's code depends on: the target, LLVM, and all source that may take part in writing it, which
    is sooner read than run."""
    about = (source.__name__, llvmlite.__version__, _sources(Path(source.__file__ or "").parent), *map(str, target.key))
    return hashlib.sha256("\n".join(about).encode()).hexdigest()


@cache
def _sources(folder: Path) -> str:
    """A digest of the source in this folder and in the engine's own."""
    digest = hashlib.sha256()
    for each in sorted({Path(__file__).parent, folder}):
        for source in sorted(each.rglob("*.py")):
            content = source.read_bytes()
            digest.update(f"{source.relative_to(each)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _assemble(target: Target, source: ModuleType) -> str:
    module = Module(ir.Module("sparsify"), target)
    module.llvm.triple = target.triple
    for file in kernel_files(source).values() if hasattr(source, "__path__") else (source,):
        if hasattr(file, "emit"):
            file.emit(module)
    return str(module.llvm)


def _machine(target: Target) -> Any:
    """LLVM's code generator. LLVM takes 40 MB of a process, so it is loaded where there is something to compile."""
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    found = llvm.Target.from_triple(target.triple)
    return found.create_target_machine(target.cpu, target.features, opt=3, reloc="pic", codemodel="small", jit=True)


def _compile(text: str, target: Target) -> bytes:
    from llvmlite import binding as llvm

    machine = _machine(target)
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = False  # the kernels are vectors already
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    code: bytes = machine.emit_object(module)
    return code


def _loaded(image: Image) -> Callable[[str], int]:
    """Addresses of an image's functions, in memory of its own."""
    content = bytearray(image.content)
    process = ctypes.CDLL(None)
    for name, place in image.outside.items():
        address = ctypes.cast(getattr(process, name), ctypes.c_void_p).value or 0
        content[place : place + 8] = address.to_bytes(8, "little")
    code = Code.of(bytes(content))
    return lambda function: code.address + image.functions[function] if function in image.functions else 0


def _loaded_by_llvm(code: bytes, target: Target) -> Callable[[str], int]:
    """Addresses of an object file's functions, by LLVM's own linker."""
    from llvmlite import binding as llvm

    empty = llvm.parse_assembly("")
    empty.triple = target.triple
    engine = llvm.create_mcjit_compiler(empty, _machine(target))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address: Callable[[str], int] = engine.get_function_address
    return address
