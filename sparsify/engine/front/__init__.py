"""The engine's front: an ONNX model in, a Program for given input shapes out."""
