"""Tensors that several parts of a network share, such as an embedding that is also the last layer's weight."""

from torch import nn


def tensor_owners(model: nn.Module) -> dict[str, str]:
    """For every name in the model's state the name under which its tensor comes first; they differ where it is tied."""
    owners: dict[int, str] = {}
    return {name: owners.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()}
