"""ONNX models in the form of an older standard, for programs that read no newer one."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.version_converter

from sparsify.errors import FormatError
from sparsify.formats._onnx_constants import decoded
from sparsify.formats._onnx_file import of_proto, open_model, size_on_disk
from sparsify.formats._onnx_save import save


def write_older(source: Path, path: Path, opset: int, ir_version: int) -> Path:
    """Write an ONNX model as programs of an older standard read it, weights dense; return the path.

    Raises FormatError where an operator has no older form.
    """
    save(decoded(open_model(source), size_on_disk(source), source, casts=True), path)
    proto = onnx.load(path)
    found = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if found > opset:
        try:
            proto = onnx.version_converter.convert_version(proto, opset)
        except RuntimeError as error:
            reason = str(error).split("\n")[0][:200]
            raise FormatError(f"{source} of opset {found} has no form of opset {opset} ({reason}).") from None
        _drop_unknown_attributes(proto, opset)
    proto.ir_version = min(proto.ir_version, ir_version)
    save(of_proto(proto), path)
    return path


def _drop_unknown_attributes(proto: onnx.ModelProto, opset: int) -> None:
    """The converter leaves attributes of newer operators at their defaults, which older readers refuse."""
    for node in proto.graph.node:
        if node.domain in ("", "ai.onnx"):
            known = onnx.defs.get_schema(node.op_type, opset, "").attributes
            kept = [attribute for attribute in node.attribute if attribute.name in known]
            del node.attribute[:]
            node.attribute.extend(kept)
