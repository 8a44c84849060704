"""From a torch module to an ONNX graph. torch is imported when a function is called, not before.

The exporter's optimizer would fold batch norms into weights, transpose those of linear layers and join those of
gates. That is left to the runtimes, all of which do it at load, so that the file holds the trained weights bit for
bit, each under its own name.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from sparsify.formats._onnx_proof import compare, open_session

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 20


def export_module(module: nn.Module, sample: Tensor) -> onnx.ModelProto:
    """The graph of a module, weights as they are.

    sample: [n, ...], of which the first extent is left open; tokens [n, t], both extents.
    """
    import onnx_ir.passes.common as passes
    import torch
    from onnxscript import ir, optimizer, rewriter
    from onnxscript.rewriter.rules import common as rules

    from sparsify.topology.tying import tensor_owners

    extents = ("batch",) if sample.is_floating_point() else ("batch", "length")

    def takes_weights(node: ir.Node) -> bool | None:
        """For the folder: not where a node reads weights, and as it thinks best otherwise."""
        return False if any(value is not None and value.name in weights for value in node.inputs) else None

    with _quiet():
        program = torch.onnx.export(
            module,
            (sample,),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({place: torch.export.Dim(name) for place, name in enumerate(extents)},),
            verbose=False,
        )
        assert program is not None
        graph = program.model
        weights = set(graph.graph.initializers)
        optimizer.fold_constants(graph, should_fold=takes_weights)
        rewriter.rewrite(graph, [rules.materialize_reshape_shape_rule, rules.remove_optional_bias_from_conv_rule])
    for clean in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(),
        passes.ClearMetadataAndDocStringPass(),  # the exporter leaves stack traces with local paths
    ):
        clean(graph)
    proto: onnx.ModelProto = program.model_proto
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    _name_by_owner(proto, tensor_owners(module))
    return proto


def _name_by_owner(proto: onnx.ModelProto, owners: Mapping[str, str]) -> None:
    """Give tied weights the name under which they come first; the exporter takes the last."""
    for tensor in proto.graph.initializer:
        tensor.name = owners.get(tensor.name, tensor.name)
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = owners.get(name, name)


def error_against(module: nn.Module, samples: Sequence[Tensor], path: Path) -> float:
    """Largest relative error of the file's outputs in onnxruntime against torch, over inputs of several sizes."""
    import torch

    session = open_session(path)
    errors = []
    for batch in samples:
        with torch.no_grad():
            expected = module(batch).numpy()
        errors.append(compare([expected], session.run(None, {"input": batch.numpy()})))
    return max(errors)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter warns about packages that it does not need here and about its own deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
