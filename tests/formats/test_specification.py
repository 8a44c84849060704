"""docs/format.md: its bytes decode by its own lines of numpy, by our reader, and come out of our writer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from sparsify.formats import _positions, safetensors

TEXT = (Path(__file__).parent.parent.parent / "docs/format.md").read_text()
DENSE = np.zeros((2, 10), np.float16)
DENSE.reshape(-1)[[1, 3, 18]] = 1.0, -0.0, 2.0


def printed(part: str) -> np.ndarray:
    """Bytes that the specification prints for a part of `w`."""
    found = re.search(rf"w\.{part} +((?:[0-9a-f]{{2}} )+)", TEXT)
    return np.frombuffer(bytes.fromhex(found[1]), np.uint8)


@pytest.mark.parametrize("encoding", _positions.ENCODINGS)
def test_worked_bytes_decode_by_the_lines_printed(encoding):
    """The code block under "Rules for readers" is run as it stands, without the lines of the other encodings."""
    code = re.search(r"```python\n(stored = .*?)```", TEXT, re.DOTALL)[1]
    lines = code.replace("codes = np.stack", "gaps4 is None or np.stack").splitlines()
    if encoding == "bitmask":
        lines = [line for line in lines if "codes" not in line] + ["dense = np.zeros(n, values.dtype)"]
        lines = [line for line in lines if "positions" not in line and "reshape" not in line]
        lines += ["dense[stored] = values", "dense = dense.reshape(shape)"]
    else:
        lines = [line for line in lines if "bitmask" not in line]
        if encoding == "gaps4":
            lines = [line.replace("gaps4 is None or", "codes =") for line in lines if line.split()[2:3] != ["gaps8"]]
    names = {"np": np, encoding: printed(encoding), "values": printed("values").view(np.float16)}
    names |= {"n": 20, "shape": (2, 10), "limit": _positions.GAP_LIMITS.get(encoding), "gaps4": printed("gaps4")}
    exec("\n".join(lines), names)
    assert names["dense"].tobytes() == DENSE.tobytes()


@pytest.mark.parametrize("encoding", _positions.ENCODINGS)
def test_worked_bytes_are_what_is_written(encoding):
    bitmask = np.packbits(DENSE.view(np.uint16).reshape(-1) != 0, bitorder="little")
    positions = np.flatnonzero(DENSE.view(np.uint16))
    made = bitmask if encoding == "bitmask" else _positions.encode_gaps(positions, 20, encoding)
    assert made.tobytes() == printed(encoding).tobytes()


def test_the_printed_file_is_read(tmp_path):
    block = re.search(r"header as text\)\n\n((?:    .*\n)+)", TEXT)[1].split()
    length, header, data = bytes.fromhex(block[0]), "".join(block[1:-2]).encode(), bytes.fromhex("".join(block[-2:]))
    path = tmp_path / "worked.sparse.safetensors"
    path.write_bytes(length + header.ljust(int.from_bytes(length, "little")) + data)
    assert len(header) <= int.from_bytes(length, "little") < len(header) + 8
    assert safetensors.read(path).tensors["w"].tobytes() == DENSE.tobytes()


def test_the_sizes_printed_are_those_of_the_encodings():
    """Entropy bound and encodings, bytes a weight at random positions, as the table says."""
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in TEXT.splitlines() if line.startswith("| ")}
    size, random = 1 << 20, np.random.default_rng(0)
    columns = [(0.8, 4), (0.9, 4), (0.95, 4), (0.99, 4), (0.9, 2), (0.95, 2)]
    for index, (sparsity, width) in enumerate(columns):
        entropy = -(sparsity * np.log2(sparsity) + (1 - sparsity) * np.log2(1 - sparsity)) / 8
        assert float(rows["bound"][index]) == pytest.approx(entropy + width * (1 - sparsity), abs=6e-4)
        positions = np.flatnonzero(random.random(size) >= sparsity)
        values = len(positions) * width / size
        assert float(rows["bitmask"][index]) == pytest.approx(values + 1 / 8, abs=3e-3)
        for encoding in _positions.GAP_LIMITS:
            found = values + _positions.gap_bytes(positions, size, encoding) / size
            assert float(rows[encoding][index]) == pytest.approx(found, abs=4e-3)


def test_the_record_is_described_key_by_key():
    from sparsify.formats._metadata import Metadata

    table = TEXT.split("## 3. Metadata")[1].split("**Mask digest.**")[0]
    described = set(re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert described == set(Metadata.model_fields)


def test_index_example_is_valid_json():
    example = json.loads(re.search(r"```json\n(.*?)```", TEXT, re.DOTALL)[1])
    assert example["version"] == 1 and example["tensors"]["fc.weight"]["encoding"] in _positions.ENCODINGS
