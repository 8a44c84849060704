"""What operations of torch make, for tests that something large is never made."""

from __future__ import annotations

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparsify.training.deferred import Later


class Watcher(TorchDispatchMode):
    """The largest tensor that any operation makes while this is entered, in elements of its storage."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, Tensor) and item.device.type != "meta" and not isinstance(item, Later):  # in memory
                self.largest = max(self.largest, item.untyped_storage().nbytes() // item.element_size())
        return result
