"""The sparse inference engine: an ONNX model in, machine code out, numpy in and out, never torch."""

from sparsify.engine.session import InferenceSession

__all__ = ["InferenceSession"]
