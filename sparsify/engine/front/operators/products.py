"""Gemm and MatMul."""

from __future__ import annotations

import numpy as np

from sparsify.engine.front.builder import Builder, Unsupported
from sparsify.engine.front.graph import Array, Node
from sparsify.engine.front.registry import importer
from sparsify.engine.nonzeros import Weight, packed
from sparsify.engine.program import Linear, MatMul


def linear(b: Builder, source: str, weight: Weight, bias: Array, output: str, name: str) -> str:
    """Emit a Linear with the weight [o, k]."""
    if isinstance(weight, np.ndarray):
        weight = packed(np.ascontiguousarray(weight, np.float32))
    return b.emit(Linear(source, output, weight, np.ascontiguousarray(bias, np.float32), name=name))


@importer("MatMul")
def matmul(b: Builder, node: Node) -> None:
    left, right, output = node.input(0), node.input(1), node.output(0)
    constant = b.weight(right)
    if constant is not None and constant.dtype == np.float32 and left not in b.constants:
        extra = constant.shape[:-2]
        rank = len(b.shape(left))
        if constant.ndim >= 2 and set(extra) <= {1} and rank >= max(2, constant.ndim):
            weight = np.asarray(constant.reshape(*constant.shape[-2:])).T
            linear(b, left, weight, np.zeros(len(weight)), output, node.name)
            return
    _product(b, left, right, output)


def _product(b: Builder, left: str, right: str, output: str) -> None:
    """numpy's matmul: a vector is a matrix of one row or column that the result does not show."""
    a, c = b.shape(left), b.shape(right)
    if not a or not c:
        raise ValueError("MatMul of a scalar")
    as_row = b.reshape(left, (1, *a)) if len(a) == 1 else left
    as_column = b.reshape(right, (*c, 1)) if len(c) == 1 else right
    if len(a) > 1 and len(c) > 1:
        b.emit(MatMul(left, right, output))
        return
    product = b.emit(MatMul(as_row, as_column, b.fresh(output)))
    *shape, rows, columns = b.shape(product)
    shape += [rows] * (len(a) > 1) + [columns] * (len(c) > 1)
    b.reshape(product, tuple(shape), output)


@importer("Gemm")
def gemm(b: Builder, node: Node) -> None:
    """alpha A B + beta C; a Linear where B is constant."""
    alpha, beta = np.float32(node.get("alpha", 1.0)), np.float32(node.get("beta", 1.0))
    left, right, added, output = node.input(0), node.input(1), node.input(2), node.output(0)
    if b.dtype(left) != "float32":
        raise Unsupported("Gemm of integers")
    if len(b.shape(left)) != 2 or len(b.shape(right)) != 2:
        raise ValueError(f"Gemm needs matrices, not {b.shape(left)} and {b.shape(right)}")
    if node.get("transA", 0):
        left = b.transpose(left, (1, 0))
    weight = b.weight(right)
    if weight is None:
        if node.get("transB", 0):
            right = b.transpose(right, (1, 0))
        product = b.emit(MatMul(left, right, b.fresh(output)))
        _plus(b, product, alpha, added, beta, output)
        return
    if not node.get("transB", 0):
        weight = np.asarray(weight).T
    if alpha != 1:
        weight = np.asarray(weight) * alpha
    bias = _row(b, added, len(weight), beta)
    if bias is None:
        product = linear(b, left, weight, np.zeros(len(weight)), b.fresh(output), node.name)
        _plus(b, product, np.float32(1), added, beta, output)
    else:
        linear(b, left, weight, bias, output, node.name)


def _row(b: Builder, name: str, size: int, beta: np.float32) -> Array | None:
    """C times beta as a bias [size]; None where it is computed or differs from row to row."""
    if not name:
        return np.zeros(size, np.float32)
    constant = b.constant(name)
    if constant is None or constant.ndim > 2 or (constant.ndim == 2 and constant.shape[0] != 1):
        return None
    return np.broadcast_to(constant.reshape(-1) * beta, size)


def _plus(b: Builder, product: str, alpha: np.float32, added: str, beta: np.float32, output: str) -> None:
    if alpha != 1:
        product = b.elementwise("mul", product, np.asarray(alpha))
    if not added:
        b.alias(output, product)
        return
    if beta != 1:
        added = b.elementwise("mul", added, np.asarray(beta))
    b.elementwise("add", product, added, output=output)
