"""InferenceSession: a model file in, numpy arrays in and out, as onnxruntime has it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        names = [port.name for port in self._graph.outputs]
        wanted = names if output_names is None else list(output_names)
        for name in wanted:
            if name not in names:
                raise EngineError(f"The model has no output '{name}'. Its outputs are {', '.join(names)}.")
        arrays = _checked(self._graph.inputs, feeds)
        executable = self._executable(tuple(arrays[port.name].shape for port in self._graph.inputs))
        found = dict(zip(names, executable.run([arrays[port.name] for port in self._graph.inputs]), strict=True))
        dtypes = {port.name: port.dtype for port in self._graph.outputs}
        return [_as_declared(found[name], dtypes[name]) for name in wanted]

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


def _checked(ports: Sequence[Port], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs as the engine computes with them. Raises EngineError where they do not fit."""
    names = [port.name for port in ports]
    if unknown := [name for name in feeds if name not in names]:
        raise EngineError(f"The model has no input '{unknown[0]}'. Its inputs are {', '.join(names) or 'none'}.")
    sizes: dict[str, int] = {}
    arrays = {}
    for port in ports:
        if port.name not in feeds:
            raise EngineError(f"The model's input '{port.name}' is missing. Give it as an array in `feeds`.")
        array = np.asarray(feeds[port.name])
        if array.dtype.name != port.dtype and port.dtype != "object":
            raise EngineError(
                f"The model's input '{port.name}' is of dtype {port.dtype}, but was given {array.dtype}. "
                f"Convert it with .astype(numpy.{port.dtype})."
            )
        _check_fit(port, array.shape, sizes)
        arrays[port.name] = array.astype(np.float32) if _is_other_float(port.dtype) else array
    return arrays


def _check_fit(port: Port, shape: Shape, sizes: dict[str, int]) -> None:
    """Raises EngineError where a shape does not fit; `sizes` collects what symbolic sizes stand for."""
    if port.shape is None:
        return
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
