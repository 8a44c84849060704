"""The sparse inference engine: an ONNX model in, machine code out, numpy in and out, never torch."""
