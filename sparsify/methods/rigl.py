"""RigL: the rigged lottery."""

from typing import final

from torch import Tensor

from sparsify.methods import Connections, Method, gradient_magnitude


@final
class RigL(Method):
    """Drops the smallest magnitudes and grows where the gradient is largest (Evci et al. 2020, algorithm 1).

    An update takes the place of the gradient step: the batch's gradient is spent on choosing.
    """

    updates_masks = True
    needs_dense_gradients = True
    replaces_step = True

    def grow_score(self, layer: Connections) -> Tensor:
        return gradient_magnitude(layer)
