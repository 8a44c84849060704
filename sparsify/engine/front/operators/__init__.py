"""Importers of ONNX operators: each file of this folder registers what it can import."""
