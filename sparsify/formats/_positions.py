"""Where the stored elements of a packed tensor belong: bitmask, gaps of 8 bits, gaps of 4 bits. numpy alone.

docs/format.md, section 1, is the specification.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparsify.errors import FormatError

BLOCK = 1 << 21  # codes that are decoded at a time; keeps 64-bit positions from outgrowing the tensor
PART = 1 << 18  # elements of a bitmask that are made at a time; a multiple of 8
GAP_LIMITS = {"gaps8": 255, "gaps4": 15}  # the code that skips and stores nothing
ENCODINGS = ("bitmask", *GAP_LIMITS)


def cheapest(bitmask: np.ndarray, size: int, stored: int) -> tuple[str, np.ndarray]:
    """The encoding of fewest bytes, and these bytes. bitmask: [⌈size/8⌉] uint8 with `stored` bits set."""
    if len(bitmask) <= stored / 2:  # gaps take at least half a byte each
        return "bitmask", bitmask
    positions = np.flatnonzero(np.unpackbits(bitmask, count=size, bitorder="little"))
    costs = {"bitmask": len(bitmask)} | {name: gap_bytes(positions, size, name) for name in GAP_LIMITS}
    name = min(costs, key=lambda key: costs[key])
    return name, bitmask if name == "bitmask" else encode_gaps(positions, size, name)


def cheapest_of(positions: np.ndarray, size: int) -> tuple[str, np.ndarray]:
    """As `cheapest`, from ascending positions: a bitmask is made only where it is what is chosen."""
    costs = {"bitmask": -(-size // 8)}
    if costs["bitmask"] > len(positions) / 2:
        costs |= {name: gap_bytes(positions, size, name) for name in GAP_LIMITS}
    name = min(costs, key=lambda key: costs[key])
    parts = bitmask_parts(positions, size) if name == "bitmask" else [encode_gaps(positions, size, name)]
    return name, np.concatenate([np.zeros(0, np.uint8), *parts])


def bitmask_parts(positions: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The bitmask of ascending positions, uint8, in parts that follow each other."""
    for start in range(0, size, PART):
        bits = np.zeros(min(PART, size - start), bool)
        bits[positions[np.searchsorted(positions, start) : np.searchsorted(positions, start + PART)] - start] = True
        yield np.packbits(bits, bitorder="little")


def gap_bytes(positions: np.ndarray, size: int, encoding: str) -> int:
    """Bytes that gaps need. positions: ascending, [stored] int64."""
    limit = GAP_LIMITS[encoding]
    codes = len(positions) + int((_gaps(positions, size) // limit).sum())
    return codes if encoding == "gaps8" else (codes + 1) // 2


def encode_gaps(positions: np.ndarray, size: int, encoding: str) -> np.ndarray:
    """Codes of the positions and of the zeros behind them, [bytes] uint8."""
    limit = GAP_LIMITS[encoding]
    gaps = _gaps(positions, size)
    places = np.cumsum(gaps // limit + 1) - 1  # of each gap's last code; those before it are escapes
    codes = np.full(places[-1], limit, np.uint8)
    codes[places[:-1]] = gaps[:-1] % limit
    if encoding == "gaps8":
        return codes
    codes = np.append(codes, np.full(len(codes) % 2, limit, np.uint8)).reshape(-1, 2)
    return codes[:, 0] | codes[:, 1] << 4


def padding(encoding: str, count: int) -> np.ndarray:
    """`count` bytes that store nothing."""
    return np.full(count, 0 if encoding == "bitmask" else 255, np.uint8)


def check_extent(data: np.ndarray, size: int, encoding: str) -> None:
    """Refuse bytes that cannot describe `size` elements, before anything of that size is allocated."""
    codes = len(data) * (2 if encoding == "gaps4" else 1)
    reach = 8 * len(data) if encoding == "bitmask" else GAP_LIMITS[encoding] * (codes + 1)
    if size > reach:
        raise FormatError(f"{len(data)} bytes of {encoding} cannot describe {size} elements")


def decode(data: np.ndarray, size: int, encoding: str) -> Iterator[np.ndarray]:
    """Stored positions in ascending order, block by block, int64.

    Raises FormatError where a position lies outside, or where the codes end too early.
    """
    check_extent(data, size, encoding)
    yield from _from_bitmask(data, size) if encoding == "bitmask" else _from_gaps(data, size, encoding)


def _from_bitmask(data: np.ndarray, size: int) -> Iterator[np.ndarray]:
    whole, rest = divmod(size, 8)
    tail = data[whole:]
    if tail.size and (tail[0] >> rest or tail[1:].any()):
        raise FormatError(f"the bitmask has bits at and past position {size}, where the tensor ends")
    for start in range(0, len(data), BLOCK):
        yield np.flatnonzero(np.unpackbits(data[start : start + BLOCK], bitorder="little")) + 8 * start


def _from_gaps(data: np.ndarray, size: int, encoding: str) -> Iterator[np.ndarray]:
    limit, reached = GAP_LIMITS[encoding], 0
    for start in range(0, len(data), BLOCK):
        codes = data[start : start + BLOCK]
        if encoding == "gaps4":
            codes = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)
        stores = codes != limit
        ends = np.cumsum(codes.astype(np.int64) + stores) + reached
        reached = int(ends[-1])
        positions = ends[stores] - 1
        if len(positions) and positions[-1] >= size:
            raise FormatError(f"a stored position, {positions[-1]}, lies outside of the tensor's {size} elements")
        yield positions
    if reached <= size - limit:
        raise FormatError(f"the codes pass {reached} positions only, of {size} elements")


def _gaps(positions: np.ndarray, size: int) -> np.ndarray:
    """Zeros before each stored element and, as the last entry, behind all."""
    return np.diff(positions, prepend=-1, append=size) - 1
