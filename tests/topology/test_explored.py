"""What existed at any time is the same in every form."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsify.topology.explored import Explored, as_listed, as_mask
from sparsify.topology.masks import Masks
from sparsify.topology.positions import Positions
from sparsify.topology.select import random_mask


@given(shape=st.sampled_from([(7, 11), (40, 90), (1, 1)]), count=st.integers(0, 70), seed=st.integers(0, 50))
def test_masks_and_positions_find_the_same(shape, count, seed):
    random = torch.Generator().manual_seed(seed)
    drawn = [random_mask(shape, count, random) for _ in range(4)]
    listed = [Masks({}, positions={"a": Positions(shape, m.flatten().nonzero().squeeze(1))}) for m in drawn]
    whole, held = Explored.of(Masks({"a": drawn[0]})), Explored.of(listed[0])
    size = drawn[0].numel()
    for mask, positions in zip(drawn, listed, strict=True):
        whole, held = whole.including(Masks({"a": mask})), held.including(positions)
        found = held.found["a"]
        assert torch.equal(as_mask(found, mask.shape), whole.found["a"]) and held.rate() == whole.rate()
        assert torch.equal(as_listed(whole.found["a"]), found)
        assert found.numel() * found.element_size() <= max(size / 8 + 1, 8), "more than a bit for each weight"
    assert whole.rate() == int((drawn[0] | drawn[1] | drawn[2] | drawn[3]).sum()) / size
