"""What the weights of an ONNX graph are, however they are encoded: a few operators computed in numpy.

Memory is bounded by the size of the file, because a few bytes can ask for any number of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from sparsify.errors import FormatError
from sparsify.formats._bits import StoredTensor, of_array
from sparsify.formats._onnx_file import OnnxModel, array_of
from sparsify.formats._onnx_graph import captured_names

EXPANSION = 4096  # bytes of weights that a byte of the file may stand for
ALLOWANCE = 1 << 26  # and bytes that any file may ask for besides
LONGEST = 64  # operators on the way to one weight
CARRIERS = ("ScatterElements", "Constant")  # those that hold weights as such and do not only change their type
NUMBERS = {"value_int": "i8", "value_ints": "i8", "value_float": "f4", "value_floats": "f4"}  # of a Constant
FLOATS = ("float32", "float16", "bfloat16", "float64")


def decoded(model: OnnxModel, size: int, path: Path, *, casts: bool) -> OnnxModel:
    """The same model with weights as plain tensors, and without what encoded them.

    Weights are floating-point constants of two dimensions or more that the graph computes from constants alone
    by the operators in `COMPUTE`; each is computed anew whenever it is read, so that memory holds one of them.
    size: bytes of the file, its external data among them. casts: also decode weights that are stored dense in
    another type. Raises FormatError where an encoding breaks a rule or would take too much memory.
    """
    constants = _Constants(model, path)
    limit = size * EXPANSION + ALLOWANCE
    budget = _Budget(limit, path)
    found: dict[str, StoredTensor] = {}
    for node in model.proto.graph.node:
        if constants.computes(node):
            continue
        for name in node.input:
            if name in constants.producers and name not in found and constants.is_constant(name):
                chain = constants.chain(name)
                if not casts and not any(constants.producers[step].op_type in CARRIERS for step in chain):
                    continue
                array = constants.array(name, chain, budget)
                if array.ndim > 1 and array.dtype.name in FLOATS:
                    chunks = partial(_computed, constants, name, chain, limit)
                    found[name] = replace(of_array(array, name), chunks=chunks)
    if not found:
        return model
    result = model.with_tensors(found).copy()
    graph = result.proto.graph
    nodes = [node for node in graph.node if not (len(node.output) == 1 and node.output[0] in found)]
    del graph.node[:]
    graph.node.extend(nodes)
    return _without_unused(result, constants)


def _computed(constants: _Constants, name: str, chain: list[str], limit: int) -> Iterator[np.ndarray]:
    return of_array(constants.array(name, chain, _Budget(limit, constants.path)), name).chunks()


@dataclass
class _Budget:
    """Bytes that constants may still take."""

    left: int
    path: Path

    def spend(self, count: int) -> None:
        """Count bytes that will be allocated. Raises FormatError where they are out of proportion."""
        self.left -= count
        if count < 0 or self.left < 0:
            raise FormatError(
                f"The constants of {self.path} would take {count:,} bytes and more when computed, out of all "
                f"proportion to the file. It is damaged, or made to exhaust memory. Get it from its source again."
            )


class _Constants:
    """Values that depend on initializers alone, computed when asked for."""

    def __init__(self, model: OnnxModel, path: Path) -> None:
        graph = model.proto.graph
        inputs = {value.name for value in graph.input}
        self._tensors = {name: tensor for name, tensor in model.tensors.items() if name not in inputs}
        self._others = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}
        self.producers = {node.output[0]: node for node in graph.node if self.computes(node)}
        self.path = path
        self._constant: dict[str, bool] = {}

    def computes(self, node: onnx.NodeProto) -> bool:
        """Whether this is a node that could be computed here."""
        return node.op_type in COMPUTE and node.domain in ("", "ai.onnx") and len(node.output) == 1

    def is_constant(self, name: str) -> bool:
        """Whether a value depends on initializers alone."""
        pending, entered = [name], set()
        while pending:
            current = pending[-1]
            node = self.producers.get(current)
            if current in self._constant:
                pending.pop()
            elif node is None:
                self._constant[current] = current in self._tensors or current in self._others
            elif current in entered:  # its inputs are known, unless it is among them
                self._constant[current] = all(self._constant.get(i, False) for i in node.input if i)
            else:
                entered.add(current)
                pending += [i for i in node.input if i and i not in self._constant]
        return self._constant[name]

    def chain(self, name: str) -> list[str]:
        """Values to be computed on the way to a constant, in an order in which they can be."""
        order, pending = [], [name]
        while pending:
            current = pending.pop()
            if current in self.producers:
                order.append(current)
                pending += [i for i in self.producers[current].input if i]
            if len(order) > LONGEST:
                raise self.broken(name, f"more than {LONGEST} operators compute it")
        return order[::-1]

    def array(self, name: str, chain: list[str], budget: _Budget) -> np.ndarray:
        """A constant value."""
        values: dict[str, np.ndarray] = {}
        for current in chain:
            if current not in values:
                values[current] = self._compute(self.producers[current], values, budget)
        return values[name]

    def broken(self, name: str, found: str) -> FormatError:
        return FormatError(
            f"{self.path} does not decode: the weight {name!r} cannot be computed ({found}). The file was changed "
            f"or damaged. Export it again; docs/format.md has the rules."
        )

    def _compute(self, node: onnx.NodeProto, values: dict[str, np.ndarray], budget: _Budget) -> np.ndarray:
        try:
            inputs = [values[i] if i in values else self._stored(i) for i in node.input]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            result = np.asarray(COMPUTE[node.op_type](budget, attributes, *inputs))
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError) as error:
            raise self.broken(node.output[0], str(error)[:200]) from None
        return result

    def _stored(self, name: str) -> np.ndarray:
        if name in self._tensors:
            return array_of(self._tensors[name])
        return numpy_helper.to_array(self._others[name])


def _constant(budget: _Budget, attributes: dict[str, Any]) -> np.ndarray:
    if "value" in attributes:
        return numpy_helper.to_array(attributes["value"])
    for name, dtype in NUMBERS.items():
        if name in attributes:
            return np.array(attributes[name], dtype)
    sparse = attributes["sparse_value"]
    dims, values = list(sparse.dims), numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    budget.spend(math.prod(dims) * values.itemsize)
    if indices.ndim == 2:
        indices = np.ravel_multi_index(tuple(indices.T), tuple(dims))
    return _scattered(np.zeros(math.prod(dims), values.dtype), indices, values).reshape(dims)


def _cast(budget: _Budget, attributes: dict[str, Any], array: np.ndarray) -> np.ndarray:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
    budget.spend(array.size * dtype.itemsize)
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype)


def _add(budget: _Budget, attributes: dict[str, Any], left: np.ndarray, right: np.ndarray) -> np.ndarray:
    budget.spend(math.prod(np.broadcast_shapes(left.shape, right.shape)) * left.itemsize)
    total: np.ndarray = left + right
    return total


def _reshape(budget: _Budget, attributes: dict[str, Any], array: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return array.reshape([array.shape[i] if extent == 0 else int(extent) for i, extent in enumerate(shape)])


def _constant_of_shape(budget: _Budget, attributes: dict[str, Any], shape: np.ndarray) -> np.ndarray:
    value = numpy_helper.to_array(attributes["value"]).reshape(1) if "value" in attributes else np.zeros(1, np.float32)
    extents = [int(extent) for extent in shape]
    budget.spend(math.prod(extents) * value.itemsize)
    if value.tobytes().strip(b"\0"):
        return np.full(extents, value[0])
    return np.zeros(extents, value.dtype)


def _scatter_elements(
    budget: _Budget, attributes: dict[str, Any], data: np.ndarray, indices: np.ndarray, values: np.ndarray
) -> np.ndarray:
    if data.ndim != 1 or attributes.get("axis", 0) != 0 or attributes.get("reduction", b"none") != b"none":
        raise ValueError("it is scattered in a way that is not handled")
    return _scattered(data, indices, values)


def _scattered(dense: np.ndarray, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
    if indices.shape != values.shape or values.ndim != 1 or indices.dtype.kind != "i":
        raise ValueError(f"{values.shape} values cannot have positions {indices.shape}")
    if indices.size and not 0 <= indices.min() <= indices.max() < dense.size:
        raise ValueError(f"a position lies outside of its {dense.size} elements")
    if not dense.flags.writeable:
        dense = dense.copy()
    dense[indices] = values
    return dense


# Operators of which encoded weights are made. Each is called with (budget, attributes, *inputs).
COMPUTE: dict[str, Callable[..., np.ndarray]] = {
    "Constant": _constant,
    "Cast": _cast,
    "Add": _add,
    "Reshape": _reshape,
    "ConstantOfShape": _constant_of_shape,
    "ScatterElements": _scatter_elements,
}


def _without_unused(model: OnnxModel, constants: _Constants) -> OnnxModel:
    """The model without nodes and tensors that were there for the encoded weights alone."""
    graph = model.proto.graph
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if not constants.computes(node) or node.output[0] in wanted:
            kept.append(node)
            wanted.update(node.input)
            wanted.update(captured_names(node))
    initializers = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(initializers)
    return OnnxModel(model.proto, {name: tensor for name, tensor in model.tensors.items() if name in wanted})
