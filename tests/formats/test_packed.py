"""Sparse safetensors: bytes in, the same bytes out, never larger, and readable by the library."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sparsify.errors import FormatError
from sparsify.files import DiskError
from sparsify.formats import _bits, _positions, read_model, safetensors
from sparsify.formats._header import TensorFile, read_file
from sparsify.formats._packed import KEY, pack, unpacked
from sparsify.formats._writer import check_space
from sparsify.sources import export, open_source

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int8]
SPECIAL = [-0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-7, 0.0]


def packed(source: Path, **options) -> Path:
    return safetensors.convert(source, source.with_name("p.sparse.safetensors"), packed=True, **options).path


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    file = unpacked(read_file(path), path)
    return {name: (t.dtype, t.shape, t.bits().tobytes()) for name, t in file.tensors.items()}


@st.composite
def arrays(draw) -> np.ndarray:
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.sampled_from([0, 1, 1, 2, 7, 40, 300]), max_size=3)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0, 0.001, 0.03, 0.2, 0.6, 1]))
    array = np.where(random.random(shape) < density, random.integers(1, 100, shape), 0).astype(dtype).reshape(shape)
    if dtype is not np.int8 and array.size:
        count = draw(st.integers(0, min(5, array.size)))
        array.reshape(-1)[random.integers(0, array.size, count)] = random.choice(SPECIAL, count).astype(dtype)
    return array


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "a.values", "a.gaps4", "b", "ü b", "c.weight"]), arrays(), max_size=4))
def test_round_trip(content):
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.safetensors"
        save_file({name: np.array(array) for name, array in content.items()}, source)
        first = packed(source)
        assert tensors_of(first) == tensors_of(source)
        dense = safetensors.convert(first, source.with_name("out.safetensors")).path
        assert tensors_of(dense) == tensors_of(source)
        assert first.stat().st_size <= dense.stat().st_size
        data_start = int.from_bytes(first.read_bytes()[:8], "little") + 8
        assert data_start % 8 == 0
        load_file(first)


@pytest.mark.parametrize("dtype", [d for d in _bits.WIDTHS if d not in ("BOOL", "C64")])
@pytest.mark.parametrize("density", [0, 0.01, 0.1, 0.4, 1])
def test_every_element_type(dtype, density, tmp_path):
    """By their bits, whatever they mean; also types that numpy lacks."""
    random = np.random.default_rng(0)
    bits = random.integers(1, 255, (50, 60)).astype(_bits.unsigned(dtype))
    bits[random.random(bits.shape) >= density] = 0
    tensor = _bits.StoredTensor(dtype, bits.shape, lambda: iter([bits.reshape(-1)]))
    found, _ = pack(tensor)
    assert (found is None) == (density == 1)
    path = tmp_path / "in.safetensors"
    safetensors._write(TensorFile({"w": tensor}, {}), path, True, None, {})
    assert tensors_of(path)["w"] == (dtype, (50, 60), bits.tobytes())


@pytest.mark.parametrize(("sparsity", "width"), [(0.9, 4), (0.95, 4), (0.9, 2), (0.95, 2), (0.99, 4)])
def test_within_a_tenth_of_the_entropy_bound(sparsity, width, tmp_path):
    random = np.random.default_rng(0)
    weight = random.standard_normal((500, 1000)).astype(f"float{8 * width}")
    weight[random.random(weight.shape) < sparsity] = 0
    density = (weight != 0).mean()
    bound = -(density * np.log2(density) + (1 - density) * np.log2(1 - density)) / 8 + width * density
    save_file({"w": weight}, tmp_path / "in.safetensors")
    size = packed(tmp_path / "in.safetensors").stat().st_size
    assert bound * weight.size < size < 1.1 * bound * weight.size


def test_several_chunks_and_blocks(tmp_path):
    """Larger than what is read, packed and decoded at a time."""
    random = np.random.default_rng(0)
    weight = np.zeros((3, _bits.CHUNK), np.float16)
    weight.reshape(-1)[random.integers(0, weight.size, weight.size // 10)] = 1.5
    weight[1, :7] = -0.0
    save_file({"w": weight}, tmp_path / "in.safetensors")
    path = packed(tmp_path / "in.safetensors")
    assert tensors_of(path) == tensors_of(tmp_path / "in.safetensors")
    (entry,) = json.loads(read_file(path).metadata[KEY])["tensors"].values()
    assert entry["encoding"] == "gaps4"
    assert len(read_file(path).tensors["w.gaps4"].bits()) > _positions.BLOCK / 4


def test_same_input_same_bytes_in_any_order_of_names(tmp_path):
    random = np.random.default_rng(0)
    content = {f"layer{i}": np.float32(random.random((40, 50)) > 0.9) for i in range(20)}
    for name, order in (("a", list(content)), ("b", list(content)[::-1])):
        save_file({key: content[key] for key in order}, tmp_path / f"{name}.safetensors")
    first = packed(tmp_path / "a.safetensors").read_bytes()
    assert first == packed(tmp_path / "b.safetensors").read_bytes()


def test_a_run_packed_keeps_its_record_and_masks(finished_run, tmp_path):
    written = export(finished_run, out=tmp_path / "run.sparse.safetensors", packed=True)
    found, original = read_model(written.path), open_source(finished_run)
    assert found.metadata == original.metadata
    assert written.digest == found.digest() == original.metadata.mask_digest
    assert all(found.tensors[name].tobytes() == t.tobytes() for name, t in original.tensors.items())
    assert written.size < (finished_run / "model.safetensors").stat().st_size
    back = export(written.path, "safetensors", tmp_path / "back.safetensors")
    assert back.path.read_bytes() == (finished_run / "model.safetensors").read_bytes()


def test_live_zeros_are_stored(tmp_path):
    model = open_source("lenet-300-100-digits")
    name = "1.weight"
    positions = np.flatnonzero(model.tensors[name])[[5, 9]].tolist()
    model.tensors[name].reshape(-1)[positions] = 0
    model = type(model)(
        model.tensors, model.layers, model.metadata.model_copy(update={"live_zeros": {name: positions}})
    )
    path = tmp_path / "m.sparse.safetensors"
    assert safetensors.write(model, path, packed=True).digest == model.metadata.mask_digest
    assert len(load_file(path)[f"{name}.values"]) == model.masks()[name].sum()
    assert read_model(path).masks()[name].reshape(-1)[positions].all()


@pytest.mark.parametrize("values", _bits.VALUE_TYPES)
@pytest.mark.parametrize("pack_it", [False, True])
def test_values_of_a_named_type(values, pack_it, tmp_path):
    """A weight too small for the type is a connection still; the mask digest stays."""
    model = open_source("lenet-300-100-digits")
    weight = model.tensors["3.weight"]
    position = int(np.flatnonzero(weight)[3])
    weight.reshape(-1)[position] = 1e-12
    path = tmp_path / "m.safetensors"
    written = safetensors.write(model, path, packed=pack_it, values=values)
    found = read_model(path)
    assert written.digest == model.metadata.mask_digest
    assert found.metadata.live_zeros == ({"3.weight": [position]} if values == "float16" else {})
    expected = weight.astype(ml_dtypes.bfloat16 if values == "bfloat16" else values).astype(np.float32)
    assert np.array_equal(found.tensors["3.weight"].astype(np.float32), expected)
    assert found.tensors["3.bias"].dtype == np.float32


def test_values_too_large_for_their_type(tmp_path):
    save_file({"w": np.full((4, 4), 1e6, np.float32)}, tmp_path / "in.safetensors")
    with pytest.raises(FormatError, match="too large for F16 .* Use --values bfloat16"):
        export(tmp_path / "in.safetensors", "safetensors", tmp_path / "out.safetensors", values="float16")
    with pytest.raises(FormatError, match="no type of values called 'float61'. Did you mean 'float16'"):
        export(tmp_path / "in.safetensors", "safetensors", tmp_path / "out.safetensors", values="float61")
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_bfloat16_rounds_as_ml_dtypes_does(bits):
    number = np.array([bits], np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = number.astype(ml_dtypes.bfloat16)
    found = _bits.of_float32(number, "BF16").view(ml_dtypes.bfloat16)
    assert np.isnan(found[0]) if np.isnan(expected[0]) else found.tobytes() == expected.tobytes()


def test_packed_under_the_name_of_dense_weights(finished_run, tmp_path):
    with pytest.raises(FormatError, match="must not be called model.safetensors"):
        export(finished_run, out=tmp_path / "model.safetensors", packed=True)


def test_a_disk_too_small(tmp_path):
    """Where the dense form does not fit, non-zeros are counted before anything is written."""
    endless = (1 << 50,)
    zeros = _bits.StoredTensor("F32", endless, lambda: iter([np.zeros(8, np.uint32)]))
    ones = _bits.StoredTensor("F32", endless, lambda: iter([np.ones(8, np.uint32)]))
    with pytest.raises(DiskError, match="more than are free"):
        check_space(TensorFile({"w": zeros}, {}), tmp_path / "dense.safetensors", packed=False)
    with pytest.raises(DiskError, match="more than are free"):
        check_space(TensorFile({"w": ones}, {}), tmp_path / "packed.safetensors", packed=True)


def test_progress_is_counted_in_bytes(tmp_path):
    save_file({"w": np.eye(100, dtype=np.float32), "b": np.ones(7, np.int8)}, tmp_path / "in.safetensors")
    for options in ({}, {"packed": True}):
        seen: list[tuple[int, ...]] = []

        def watch(*done: int, seen: list[tuple[int, ...]] = seen) -> None:
            seen.append(done)

        out = tmp_path / f"out{len(options)}.safetensors"
        export(tmp_path / "in.safetensors", out=out, watch=watch, **options)
        assert seen[-1] == (40_007, 40_007) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_options_of_other_formats(finished_run, tmp_path):
    with pytest.raises(FormatError, match="no option of the format safetensors called '--encoding'"):
        export(finished_run, "safetensors", tmp_path / "m.safetensors", encoding="packed")
    with pytest.raises(FormatError, match="no option of the format onnx called '--packed'"):
        export(finished_run, "onnx", tmp_path / "m.onnx", packed=True)
