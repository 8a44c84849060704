"""Truly sparse layers for torch: parameter, gradient and optimizer slots are as long as the non-zeros."""

from sparsify.nn.conv import SparseConv2d as SparseConv2d
from sparsify.nn.convert import sparse_layers as sparse_layers
from sparsify.nn.convert import to_dense as to_dense
from sparsify.nn.convert import to_sparse as to_sparse
from sparsify.nn.layer import SparseLayer as SparseLayer
from sparsify.nn.linear import SparseLinear as SparseLinear
from sparsify.nn.recurrent import SparseRecurrent as SparseRecurrent
from sparsify.nn.rnn import SparseRNN as SparseRNN
