"""InferenceSession: a model file in, numpy arrays in and out, as onnxruntime has it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.engine.batches import Batches
from sparsify.engine.compile import compile_program
from sparsify.engine.executable import Executable
from sparsify.engine.explain import Explanation
from sparsify.engine.front import build, load
from sparsify.engine.front.graph import Graph, Port
from sparsify.engine.program import Shape
from sparsify.engine.target import available_cores
from sparsify.errors import EngineError

Array = np.ndarray[Any, Any]
PROGRAMS = 8  # input shapes of which a session keeps the compiled program


@dataclass(frozen=True)
class NodeArg:
    """An input or output as onnxruntime describes it: sizes that are open are strings or None."""

    name: str
    shape: list[int | str | None]
    type: str


class InferenceSession:
    """Runs an ONNX model on the CPU, faster the sparser its weights are.

    source: path of the model or its bytes. threads: how many CPU cores to use, by default all that the
    process may use. One session may be called from several threads. Raises EngineError for a model that
    cannot be read or makes no sense.
    """

    def __init__(self, source: str | Path | bytes, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise EngineError(f"A session needs at least one thread, not {threads}. Leave it out to use all cores.")
        self._graph: Graph = load(source)
        self._threads = threads or available_cores()
        self._executables: OrderedDict[tuple[Shape, ...], Executable | Batches] = OrderedDict()
        self._lock = threading.Lock()
        self._building = threading.Lock()

    def get_inputs(self) -> list[NodeArg]:
        """Names, shapes and types of the inputs."""
        return [_node_arg(port) for port in self._graph.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """Names, shapes and types of the outputs."""
        return [_node_arg(port) for port in self._graph.outputs]

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs by name, or all in the model's order where None, for the inputs in `feeds`.

        Raises EngineError for unknown names and for arrays that do not fit the model's inputs.
        """
        ports = self._graph.outputs
        places = range(len(ports)) if output_names is None else [self._place(name) for name in output_names]
        arrays = _checked(self._graph.inputs, feeds)
        found = self._executable(tuple([array.shape for array in arrays])).run(arrays)
        return [_as_declared(found[place], ports[place].dtype) for place in places]

    def _place(self, output: str) -> int:
        names = [port.name for port in self._graph.outputs]
        if output not in names:
            raise EngineError(f"The model has no output '{output}'. Its outputs are {', '.join(names)}.")
        return names.index(output)

    def explain(self, shapes: Mapping[str, Shape] | None = None) -> Explanation:
        """What runs for these shapes of all inputs, by default those of the last run: print it as a table.

        Raises EngineError where nothing has run yet and sizes are open.
        """
        with self._lock:
            last = next(reversed(self._executables), None)
        if shapes is not None:
            last = tuple(tuple(shapes[port.name]) for port in self._graph.inputs)
        elif last is None:
            last = tuple(_closed(port) for port in self._graph.inputs)
        return Explanation(tuple(self._executable(last).report()))

    def _executable(self, shapes: tuple[Shape, ...]) -> Executable | Batches:
        """What runs for these input shapes, made now or kept from before."""
        found = self._kept(shapes)
        if found is not None:
            return found
        with self._building:  # one at a time: whoever waited finds it made
            found = self._kept(shapes)
            if found is not None:
                return found
            names = [port.name for port in self._graph.inputs]
            _check_fit(self._graph.inputs, shapes)
            executable = compile_program(build(self._graph, dict(zip(names, shapes, strict=True))), self._threads)
            with self._lock:
                self._executables[shapes] = executable
                while len(self._executables) > PROGRAMS:
                    self._executables.popitem(last=False)
            return executable

    def _kept(self, shapes: tuple[Shape, ...]) -> Executable | Batches | None:
        with self._lock:
            if shapes in self._executables:
                self._executables.move_to_end(shapes)
            return self._executables.get(shapes)


ONNX_NAMES = {"float32": "float", "float64": "double", "object": "string"}


def _node_arg(port: Port) -> NodeArg:
    kind = ONNX_NAMES.get(port.dtype, port.dtype)
    return NodeArg(port.name, list(port.shape or ()), f"tensor({kind})")


def _closed(port: Port) -> Shape:
    """The shape of an input that has no open size. Raises EngineError where it has."""
    sizes = tuple(size for size in port.shape or () if isinstance(size, int))
    if port.shape is None or len(sizes) < len(port.shape):
        raise EngineError(
            f"The model's input '{port.name}' has open sizes, {port.shape}, and nothing has run yet. Run it "
            f"once, or say for which shapes to explain."
        )
    return sizes


def _checked(ports: Sequence[Port], feeds: Mapping[str, Array]) -> list[Array]:
    """The inputs as the engine computes with them, of whatever shape. Raises EngineError where they do not fit."""
    arrays = []
    for port in ports:
        if port.name not in feeds:
            raise _misnamed(ports, feeds)
        array = np.asarray(feeds[port.name])
        if _name(array.dtype) != port.dtype and port.dtype != "object":
            raise EngineError(
                f"The model's input '{port.name}' is of dtype {port.dtype}, but was given {array.dtype}. "
                f"Convert it with .astype(numpy.{port.dtype})."
            )
        arrays.append(array.astype(np.float32) if _is_other_float(port.dtype) else array)
    if len(feeds) > len(ports):
        raise _misnamed(ports, feeds)
    return arrays


def _misnamed(ports: Sequence[Port], feeds: Mapping[str, Array]) -> EngineError:
    names = [port.name for port in ports]
    if unknown := [name for name in feeds if name not in names]:
        return EngineError(f"The model has no input '{unknown[0]}'. Its inputs are {', '.join(names) or 'none'}.")
    missing = next(name for name in names if name not in feeds)
    return EngineError(f"The model's input '{missing}' is missing. Give it as an array in `feeds`.")


@cache
def _name(dtype: np.dtype[Any]) -> str:
    """numpy writes a name anew each time, which takes longer than all else that is done with an input."""
    return dtype.name


def _check_fit(ports: Sequence[Port], shapes: Sequence[Shape]) -> None:
    """Raises EngineError where shapes do not fit the model's inputs, or each other."""
    sizes: dict[str, int] = {}  # what symbolic sizes stand for
    for port, shape in zip(ports, shapes, strict=True):
        if port.shape is None:
            continue
        expected = [sizes.get(size, size) if isinstance(size, str) else size for size in port.shape]
        fits = len(expected) == len(shape) and all(
            not isinstance(want, int) or want == size for want, size in zip(expected, shape, strict=True)
        )
        if not fits:
            raise EngineError(
                f"The model's input '{port.name}' has the shape {tuple(expected)}, but was given {shape}. Names "
                f"stand for sizes that are free."
            )
        sizes |= {name: size for name, size in zip(port.shape, shape, strict=True) if isinstance(name, str)}


def _is_other_float(dtype: str) -> bool:
    return dtype in ("float16", "bfloat16", "float64")


def _as_declared(array: Array, dtype: str) -> Array:
    """An output in the dtype that the model declares, and owned by the caller."""
    if _is_other_float(dtype) and array.dtype == np.float32:
        return array.astype(dtype)
    return array
