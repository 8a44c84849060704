"""Weights in another type of number. numpy alone."""

from __future__ import annotations

import numpy as np

from sparsify.errors import FormatError
from sparsify.formats import SparseModel
from sparsify.formats._bits import VALUE_TYPES, StoredTensor, cast, of_array
from sparsify.formats._metadata import Metadata
from sparsify.registry import unknown


def value_type(name: str) -> str:
    """safetensors' name of a value type. Raises FormatError for one that is not offered."""
    if name not in VALUE_TYPES:
        raise FormatError(unknown("type of values", name, VALUE_TYPES))
    return VALUE_TYPES[name]


def stored_model(model: SparseModel, values: str | None) -> tuple[dict[str, StoredTensor], Metadata | None]:
    """The tensors of a model with its weights in the named type, and the record that is then true.

    A connection whose weight is too small for the type and becomes 0 is still a connection: its position joins
    the record's live zeros, so the mask digest stays as it was. Raises FormatError for weights too large.
    """
    given = model.tensors.items()
    tensors = {name: t if isinstance(t, StoredTensor) else of_array(t, name) for name, t in given}
    if values is None:
        return tensors, model.metadata
    dtype = value_type(values)
    tensors = {name: cast(t, dtype, name) if t.is_weight else t for name, t in tensors.items()}
    if model.metadata is None:
        return tensors, None
    live = {}
    for name, mask in model.masks().items():
        zeros = np.flatnonzero(mask.reshape(-1) & (tensors[name].bits() << 1 == 0))
        if zeros.size:
            live[name] = zeros.tolist()
    return tensors, model.metadata.model_copy(update={"live_zeros": live})
