"""SET: sparse evolutionary training."""

from typing import final

from torch import Tensor

from sparsify.methods import Connections, Method


@final
class SET(Method):
    """Drops the smallest magnitudes and grows at random (Mocanu et al. 2018).

    The gradient step is taken first; then the masks are updated.
    """

    updates_masks = True

    def grow_score(self, layer: Connections) -> Tensor:
        return layer.random()
