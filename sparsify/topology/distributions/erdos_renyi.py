"""Erdős-Rényi: layers between many neurons are sparser than layers between few."""

from collections.abc import Mapping

from sparsify.topology.densities import scale_to_sparsity


def allocate(shapes: Mapping[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
    """1 - s_l = ε (n_in + n_out) / (n_in n_out) (Mocanu et al. 2018; Evci et al. 2020, section 3.1)."""
    raw = {name: (shape[0] + shape[1]) / (shape[0] * shape[1]) for name, shape in shapes.items()}
    return scale_to_sparsity(raw, shapes, sparsity)
