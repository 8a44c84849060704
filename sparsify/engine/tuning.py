"""The numbers that decide how kernels cut their work. All of them only change speed."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sparsify.errors import EngineError


@dataclass(frozen=True)
class Tuning:
    """Defaults were measured on Zen 5 with AVX-512; other CPUs run correctly with them."""

    panel: int = 32  # vectors of positions that one row block goes over before the next begins
    panel_bytes: int = 512 << 10  # input that one panel may read, so that it stays in the second-level cache
    dense_above: float = 0.8  # density from which no straight-line code is written
    linear_images: int = 2  # batch from which a Linear slides over it instead of streaming its weights
    batch_bytes: int = 8 << 20  # of the values around one operation: larger batches run in parts of this size
    band_bytes: int = 16 << 20  # the same of operations that take turns, a band of rows each
    pages: int = 100  # on which the channels of one position may lie: more of them a core does not find at once
    tandem_bytes: int = 512 << 10  # of a value between two layers that a core's cache holds beside other things
    border_share: float = 0.3  # of a buffer, in whole cache lines: larger borders are written once, not in every run
    border_bytes: int = 32 << 20  # of buffers whose borders are written once, which keep their memory
    tiles_per_thread: int = 4  # pieces of work a thread and stage, where there is enough of it

    def __post_init__(self) -> None:
        for item in fields(self):
            if not getattr(self, item.name) > 0:
                raise EngineError(
                    f"Tuning.{item.name} is {getattr(self, item.name)}, but only numbers above zero mean "
                    "anything there. Leave it out to get the default."
                )
