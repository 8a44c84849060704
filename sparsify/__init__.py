"""sparsify: train networks sparse from scratch, export them, and measure what sparsity buys."""

__version__ = "0.1.0"
