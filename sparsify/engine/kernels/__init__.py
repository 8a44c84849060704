"""Kernels: one file for each family. See `sparsify.engine.stage` for what a file must offer."""
