"""Block functions that are written at once are those that would be written one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsify.engine.blocks import STREAM_HEAD, Blocks, straight, streams
from sparsify.engine.encode import encoder
from sparsify.engine.program import Epilogue


@st.composite
def several(draw) -> Blocks:
    """Some functions of some blocks each, with or without non-zeros."""
    together = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))  # blocks of each function
    count = sum(together)
    rows = np.array(draw(st.lists(st.integers(1, 13), min_size=count, max_size=count)))
    nonzeros = np.array(draw(st.lists(st.integers(0, 300), min_size=count, max_size=count)))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    function = np.repeat(np.arange(len(together)), together)
    before = np.cumsum(rows) - rows
    opening = np.flatnonzero(np.diff(function, prepend=-1))
    block = np.repeat(np.arange(count), nonzeros)
    row = random.integers(0, rows[block])
    shift = random.integers(-40, 4000, len(block)) * draw(st.sampled_from([1, 16]))
    order = np.lexsort((row, shift, block))
    return Blocks(
        function,
        before - before[opening][function],
        rows,
        np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count))),
        np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count))),
        np.concatenate([[0], np.cumsum(nonzeros)]),
        row[order],
        shift[order],
        random.standard_normal(len(block)).astype(np.float32),
    )


def alone(blocks: Blocks, number: int) -> Blocks:
    """One of the functions."""
    mine = np.flatnonzero(blocks.function == number)
    edges = blocks.edges[mine[0] : mine[-1] + 2]
    inside = slice(edges[0], edges[-1])
    of_blocks = (array[mine] for array in (blocks.first, blocks.rows, blocks.begins, blocks.ends))
    of_nonzeros = (array[inside] for array in (blocks.row, blocks.shift, blocks.value))
    return Blocks(np.zeros_like(mine), *of_blocks, edges - edges[0], *of_nonzeros)


@given(
    blocks=several(),
    level=st.sampled_from(["avx512", "avx2"]),
    channel=st.sampled_from([16, 208]),
    low=st.sampled_from([-np.inf, 0.0]),
    residual=st.sampled_from([None, "r"]),
    ahead=st.booleans(),
    turns=st.integers(1, 40),
)
def test_functions_written_at_once_are_those_written_alone(blocks, level, channel, low, residual, ahead, turns):
    epilogue, encode = Epilogue(residual, low, np.inf), encoder(level)
    how = (encode, channel, epilogue, ahead, turns, bool(np.isfinite(low)))
    code, places = straight(blocks, *how)
    each = [straight(alone(blocks, number), *how)[0] for number in range(len(places))]
    assert places.tolist() == np.cumsum([0, *map(len, each)])[:-1].tolist()
    assert code.tobytes() == np.concatenate(each).tobytes()


@given(several())
def test_streams_hold_weights_and_biases_of_each_function(blocks):
    rows = blocks.summed(blocks.rows)
    start = np.cumsum(rows) - rows
    bias = np.arange(rows.sum(), dtype=np.float32)
    floats, places = streams(blocks, start, bias, Epilogue(None, 0.0, 6.0))
    for number, place in enumerate(places):
        mine = alone(blocks, number).value
        end = place + STREAM_HEAD + len(mine)
        assert place % STREAM_HEAD == 0 and floats[place : place + 2].tolist() == [0, 6]
        np.testing.assert_array_equal(floats[place + STREAM_HEAD : end], mine)
        np.testing.assert_array_equal(floats[end : end + rows[number]], bias[start[number] :][: rows[number]])
