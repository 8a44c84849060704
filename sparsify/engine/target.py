"""The CPU that code is generated for."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Literal

import llvmlite

from sparsify.engine import cache as disk
from sparsify.errors import EngineError

Level = Literal["avx512", "avx2", "generic"]
_WIDTH: dict[Level, int] = {"avx512": 16, "avx2": 8, "generic": 4}
# They take two cycles for what others do in one: a multiplication of 16 lanes.
_SLOW_AVX512 = ("cannonlake", "icelake-client", "tigerlake", "rocketlake", "znver4")


@dataclass(frozen=True)
class Target:
    """A CPU as LLVM names it, and the vectors that kernels use on it."""

    triple: str
    cpu: str  # LLVM's name, as "znver5" or "x86-64"
    features: str  # LLVM's feature string
    level: Level  # which family of instructions generated code may use

    @property
    def key(self) -> tuple[str, ...]:
        """What distinguishes code for this CPU from code for another."""
        return (self.triple, self.cpu, self.features, self.level)

    @property
    def width(self) -> int:
        """Float32 lanes in one vector."""
        return _WIDTH[self.level]

    @property
    def multiplications(self) -> float:
        """Of whole vectors, a second and core at 4 GHz."""
        return 4e9 if self.level == "avx512" and self.cpu in _SLOW_AVX512 else 8e9


@cache
def host() -> Target:
    """The CPU that this process runs on."""
    identity = _identity()
    kept = disk.fetch(identity) if identity else None
    if kept is not None:
        return Target(**json.loads(kept))
    found = _as_llvm_sees_it()
    if identity:
        disk.keep(identity, json.dumps(asdict(found)).encode())
    return found


def _identity() -> str:
    """A digest of what Linux says of the first core, of LLVM's release and of what a Target holds; empty elsewhere.

    With it a process need not load LLVM, which takes 40 MB, to learn what the CPU is called.
    """
    try:
        with Path("/proc/cpuinfo").open("rb") as file:
            first = file.read(1 << 16).split(b"\n\n")[0]
    except OSError:
        return ""
    told = (b"vendor_id", b"cpu family", b"model", b"stepping", b"flags", b"CPU ", b"Features")
    lines = [line for line in first.splitlines() if line.startswith(told)]
    # Another release, of LLVM or of ours, may know a CPU otherwise.
    about = [llvmlite.__version__, *(field.name for field in fields(Target))]
    return hashlib.sha256(b"\n".join([b"host", *map(str.encode, about), *lines])).hexdigest() if lines else ""


def _as_llvm_sees_it() -> Target:
    from llvmlite import binding as llvm

    features = llvm.get_host_cpu_features()
    has = {name for name, there in features.items() if there}
    level: Level = "generic"
    if {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= has:
        level = "avx512"
    elif {"avx2", "fma"} <= has:
        level = "avx2"
    # Without this LLVM halves the vectors of many CPUs that have AVX-512.
    flags = features.flatten() + (",-prefer-256-bit" if level == "avx512" else "")
    return Target(llvm.get_process_triple(), llvm.get_host_cpu_name(), flags, level)


def named(cpu: str) -> Target:
    """A target by level, to test on one machine what others will run: "avx512", "avx2" or "generic".

    Raises EngineError where this CPU lacks the instructions.
    """
    best = host()
    order: list[Level] = ["generic", "avx2", "avx512"]
    if cpu not in order:
        raise EngineError(f"There is no target called '{cpu}'. Known: {', '.join(order)}.")
    level: Level = order[order.index(cpu)]
    if order.index(level) > order.index(best.level):
        raise EngineError(
            f"This CPU ({best.cpu}) has no {level} instructions, so code for it could not run here. "
            f"Name '{best.level}' or leave the target out."
        )
    if level == best.level:
        return best
    if not best.triple.startswith("x86_64"):
        return Target(best.triple, "generic", "", level)
    return Target(best.triple, "x86-64-v3" if level == "avx2" else "x86-64", "", level)


@cache
def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
