"""Truly sparse layers for torch: parameter, gradient and optimizer slots are as long as the non-zeros."""

from sparsify.nn.linear import SparseLinear as SparseLinear
