"""Sparse products on CUDA GPUs, in Triton: for layers of torch modules in inference."""
