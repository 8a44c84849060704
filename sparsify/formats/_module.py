"""From a model file back to a torch module. torch is imported when a function is called, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsify.errors import FormatError
from sparsify.formats import SparseModel

if TYPE_CHECKING:
    from torch import nn


def build_module(model: SparseModel) -> nn.Module:
    """The network as a torch module in evaluation mode, with the file's weights.

    Raises FormatError for a file without our metadata or with weights that do not fit its network.
    """
    import torch

    from sparsify import architectures
    from sparsify.recipe import parse_recipe
    from sparsify.references import is_reference
    from sparsify.topology.tying import tensor_owners

    if model.metadata is None:
        raise FormatError("The file does not say which network it holds: it was not written by sparsify.")
    if model.metadata.uncut_shapes:
        raise FormatError(
            "Channels were cut away from this model (--compact), so its weights no longer fit the network that the "
            "recipe names. Export it from its run, with all options at once."
        )
    network = model.metadata.network
    part = parse_recipe(network.recipe).model
    shape = tuple(network.input_shape)
    if model.build is not None:
        module = model.build()
    elif is_reference(part.name):
        raise FormatError(
            f"The network is code of somebody's own ({part.name}), which is not imported because a file names it. "
            f"Export it from the folder of its run, or from the result of `sparsify.train`."
        )
    else:
        module = architectures.build(part.name, part.options, shape, network.classes, network.vocabulary)
    expected = module.state_dict()
    # A graph holds constants besides the network's tensors, and no counts of training steps.
    owners = tensor_owners(module).items()
    tensors = {name: torch.from_numpy(model.tensors[own].copy()) for name, own in owners if own in model.tensors}
    for name in expected:
        if name.endswith("num_batches_tracked"):
            tensors.setdefault(name, expected[name])
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise FormatError(f"The weights do not fit the network that the metadata names: {error}") from None
    return module.eval()
