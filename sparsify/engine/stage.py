"""What one compiled step of a network is, and what a kernel file must offer.

A stage is a native function that does the work of one operation, cut into independent tiles. The runtime
runs a list of stages in one native call: threads claim tiles, and a stage starts when the one before it has
no tile left in work.

    void function(void **buffers, void **constants, int64 tile)

`buffers` holds the addresses of the stage's `reads`, then of its `writes`, then of its scratch memory where
it asked for some, and the number of the step; `constants` those of its `constants`, in order. Buffers
and constants are 64-byte aligned, save a program's own inputs and outputs, which are numpy arrays of the
caller's (aligned to 4 bytes at least).

A value lies in its buffer in C order ("rows", layout None) unless the stage's `layouts` says otherwise.
Where a producer and a consumer want different layouts the compiler puts a copying stage between them.

A kernel is a file in `sparsify/engine/kernels/` that defines

    def propose(operation, context) -> Proposal | Stage | None    # None: this kernel cannot do it
    def emit(module: Module) -> None                   # optional: its functions, compiled when one is needed

Parameters of a native function travel in `constants` (an int64 array is the usual first one), so that a
function is compiled once for a CPU and serves every layer; what must be generated per layer goes in `code`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sparsify.engine.layout import Planes
from sparsify.engine.memory import Written
from sparsify.engine.program import Value
from sparsify.engine.target import Target
from sparsify.engine.tuning import Tuning

Layout = Planes | None  # None is C order


@dataclass(frozen=True)
class Context:
    """What a kernel may look at when it proposes a stage."""

    values: Mapping[str, Value]  # every value of the program, with its shape and dtype
    layouts: Mapping[str, Layout]  # the layout chosen for each value
    target: Target
    threads: int
    tuning: Tuning
    nonzeros: int = 0  # of all weights of the program
    prefer: str = ""  # the kernel that wins wherever it is possible, whatever the others predict


@dataclass(frozen=True, eq=False)
class Sweep:
    """That a stage goes through its output from the first row to the last: tiles of one panel of positions, then
    those of the next. Rows count on from one block of images to the next."""

    tiles: int  # of a panel
    panels: np.ndarray  # int64 [panels, 2]: the first row that a panel writes to, and the one after its last
    reads: tuple[np.ndarray, ...]  # of each value read int64 [rows, 2]: the same that a row of the output needs


@dataclass(frozen=True, eq=False)
class Stage:
    """One operation, ready to run natively."""

    kernel: str  # the kernel's file name
    function: str  # symbol in that file's library
    reads: tuple[str, ...]  # values, in the order of `buffers`
    writes: tuple[str, ...]
    tiles: int  # independent pieces of work, each about 10 to 200 microseconds where that is possible
    constants: tuple[np.ndarray | Written, ...] = ()
    layouts: Mapping[str, Layout] = field(default_factory=dict)  # of reads and writes that are not in C order
    code: tuple[bytes, ...] = ()  # machine code of this layer, in whole cache lines; its address follows `constants`
    address: int = 0  # of the code, once it lies where it stays
    replaces: str | None = None  # one of `reads`: the result may be written over it, element by element
    scratch: int = 0  # bytes of scratch memory, shared by the stage's tiles and steps
    failure: str = ""  # the error where the stage leaves its scratch memory's first int64 at anything but 0
    fills: bool = False  # whether it writes what lies between an image's rows in a plane, too
    sweep: Sweep | None = None  # None: tiles come in some other order
    steps: int = 1  # how often all tiles run, each time when the last has ended: recurrences in time
    flops: float = 0.0  # useful floating-point operations: two per non-zero and output position
    density: float = 1.0  # of the weights
    seconds: float = 0.0  # predicted for one run; of several proposals the least is taken
    why: str = ""  # one clause for `report()`: why this kernel


@dataclass(frozen=True, eq=False)
class Proposal:
    """A stage that is built only if it is chosen."""

    seconds: float  # as in Stage
    build: Callable[[], Stage]


@dataclass(frozen=True, eq=False)
class PythonStage:
    """An operation without a native kernel: a callable on C-ordered arrays, run between native calls."""

    call: Callable[[list[np.ndarray]], list[np.ndarray]]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    kernel: str = "python"
    why: str = "no native kernel"
