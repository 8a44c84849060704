"""SET: sparse evolutionary training."""

from typing import final

import torch
from torch import Tensor

from sparsify.methods import Connections, Method


@final
class SET(Method):
    """Drops the smallest magnitudes and grows at random (Mocanu et al. 2018).

    The gradient step is taken first; then the masks are updated.
    """

    updates_masks = True

    def grow_score(self, layer: Connections) -> Tensor:
        random = torch.rand(layer.weight.shape, generator=layer.generator)
        return random.to(layer.weight.device)
