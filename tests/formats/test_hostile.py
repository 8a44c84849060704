"""Damaged and hostile files: one named error for each way to be wrong, memory bounded, never a crash."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors import SafetensorError
from safetensors.numpy import load as library_load
from safetensors.numpy import save_file

from sparsify.errors import FormatError, SparsifyError
from sparsify.formats import onnx as onnx_format
from sparsify.formats import read_model, safetensors
from sparsify.formats._header import MAX_HEADER

MUTATIONS = 10_000


def sparse_weight(shape, density):
    random = np.random.default_rng(0)
    return np.where(random.random(shape) < density, 1 + random.random(shape), 0).astype(np.float32)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> bytes:
    """A file with every encoding and a dense tensor."""
    folder = tmp_path_factory.mktemp("packed")
    content = {f"w{i}": sparse_weight((40, 50), density) for i, density in enumerate((0.5, 0.1, 0.01))}
    save_file({**content, "b": np.ones(3, np.float32)}, folder / "in.safetensors")
    path = safetensors.convert(folder / "in.safetensors", folder / "p.sparse.safetensors", packed=True).path
    encodings = {entry["encoding"] for entry in index_of(path.read_bytes())["tensors"].values()}
    assert encodings == {"bitmask", "gaps4", "gaps8"}
    return path.read_bytes()


def header_of(content: bytes) -> dict:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def index_of(content: bytes) -> dict:
    return json.loads(header_of(content)["__metadata__"]["sparse_tensors"])


def rebuilt(content: bytes, header: object) -> bytes:
    """The same data behind another header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    return len(text).to_bytes(8, "little") + text + data


def reindexed(content: bytes, change) -> bytes:
    """The same file with another table of packed tensors."""
    header, index = header_of(content), index_of(content)
    changed = change(index)
    header["__metadata__"]["sparse_tensors"] = json.dumps(index if changed is None else changed)
    return rebuilt(content, header)


def refused(content: bytes, path, match: str) -> None:
    path.write_bytes(content)
    with pytest.raises(FormatError, match=match):
        read_model(path)


def test_cut_short_at_every_byte_of_the_header(packed, tmp_path):
    path = tmp_path / "cut.safetensors"
    start = 8 + int.from_bytes(packed[:8], "little")
    for length in [*range(start), start + 1, len(packed) - 1]:
        refused(packed[:length], path, "is not a readable safetensors file")


HEADERS = {
    "JSON": (lambda h: b"{" * 50, "its header is not JSON"),
    "deep": (lambda h: b"[" * 100_000, "its header is not JSON"),
    "text": (lambda h: b"\xff\xfe{}", "its header is not JSON"),
    "list": (lambda h: [1], "is not a JSON object"),
    "twice": (lambda h: b'{"a":{},"a":{}}', "a name stands in it twice"),
    "metadata": (lambda h: {**h, "__metadata__": {"a": 1}}, "metadata is not a table of strings"),
    "metadata list": (lambda h: {**h, "__metadata__": []}, "metadata is not a table of strings"),
    "entry": (lambda h: {**h, "b": 1}, "'b' lacks dtype"),
    "missing": (lambda h: {**h, "b": {"dtype": "F32"}}, "'b' lacks dtype"),
    "dtype": (lambda h: {**h, "b": {**h["b"], "dtype": "F31"}}, "type 'F31' of 'b' is not known"),
    "dtype list": (lambda h: {**h, "b": {**h["b"], "dtype": []}}, r"type \[\] of 'b' is not known"),
    "shape": (lambda h: {**h, "b": {**h["b"], "shape": [-1]}}, r"shape \[-1\] of 'b' is not a list of sizes"),
    "shape bool": (lambda h: {**h, "b": {**h["b"], "shape": [True]}}, "is not a list of sizes"),
    "past 2^63": (lambda h: {**h, "b": {**h["b"], "shape": [2**62, 2**62]}}, "'b' of shape .* needs .* but has 12"),
    "one past 2^63": (lambda h: {**h, "b": {**h["b"], "shape": [2**64]}}, "is not a list of sizes"),
    "offsets": (lambda h: {**h, "b": {**h["b"], "data_offsets": [12, 0]}}, "are not a beginning and an end"),
    "offsets long": (lambda h: {**h, "b": {**h["b"], "data_offsets": [0, 1, 2]}}, "are not a beginning and an end"),
    "outside": (lambda h: {**h, "b": {**h["b"], "data_offsets": [10**9, 10**9 + 12]}}, "leaves a hole before it"),
    "overlap": (lambda h: {**h, "b": {**h["b"], "data_offsets": [0, 12]}}, "overlaps the one before it"),
    "unclaimed": (lambda h: {k: v for k, v in h.items() if k != "b"}, "its tensors take"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_broken_headers(name, packed, tmp_path):
    change, match = HEADERS[name]
    refused(rebuilt(packed, change(header_of(packed))), tmp_path / "broken.safetensors", match)


@pytest.mark.parametrize("length", [MAX_HEADER + 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_of_any_length_takes_no_memory(length, packed, tmp_path):
    tracemalloc.start()
    refused(length.to_bytes(8, "little") + packed[8:], tmp_path / "long.safetensors", "it states a header of")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def entry(name, **changes):
    def change(index):
        index["tensors"][name].update(changes)

    return change


INDEXES = {
    "version": (lambda i: i.update(version=2), "its version is 2; this release reads version 1"),
    "version True": (lambda i: i.update(version=True), "its version is True"),
    "no version": (lambda i: i.pop("version") and None, "its version is None"),
    "list": (lambda i: [i], "is not a JSON object"),
    "no table": (lambda i: i.update(tensors=[]), "lacks the table of packed tensors"),
    "no entry": (lambda i: i["tensors"].update(w0=3), "the entry of 'w0' lacks a known encoding"),
    "encoding": (entry("w0", encoding="os.system"), "the entry of 'w0' lacks a known encoding"),
    "encoding list": (entry("w0", encoding=["gaps8"]), "the entry of 'w0' lacks a known encoding"),
    "other encoding": (entry("w0", encoding="gaps8"), "one of the pair that 'w0' is packed into is missing"),
    "unknown": (lambda i: i["tensors"].update(x=i["tensors"]["w0"]), "one of the pair that 'x'"),
    "dense too": (lambda i: i["tensors"].update({"b": i["tensors"].pop("w1")}), "one of the pair that 'b'"),
    "shape": (entry("w0", shape=[40.0, 50]), "the entry of 'w0' lacks a known encoding or a list of sizes"),
    "smaller": (entry("w0", shape=[10, 50]), "in 'w0' the bitmask has bits at and past position 500"),
    "smaller gaps4": (entry("w1", shape=[10, 50]), r"in 'w1' a stored position, \d+, lies outside"),
    "smaller gaps8": (entry("w2", shape=[10, 50]), r"in 'w2' a stored position, \d+, lies outside"),
    "larger": (entry("w0", shape=[80, 50]), "bytes of bitmask cannot describe 4000 elements"),
    "larger gaps4": (entry("w1", shape=[80, 50]), "in 'w1' the codes pass .* positions only, of 4000"),
    "larger gaps8": (entry("w2", shape=[80, 50]), "in 'w2' the codes pass .* positions only, of 4000"),
    "bomb": (entry("w0", shape=[2**40]), "cannot describe 1099511627776 elements"),
    "bomb gaps8": (entry("w2", shape=[2**40]), "cannot describe 1099511627776 elements"),
    "past 2^63": (entry("w1", shape=[2**62, 2**62]), "cannot describe"),
    "digest": (lambda i: i.update(mask_digest="0" * 64), "do not give the recorded mask digest"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_broken_tables_of_packed_tensors(name, packed, tmp_path):
    change, match = INDEXES[name]
    tracemalloc.start()
    refused(reindexed(packed, change), tmp_path / "broken.safetensors", match)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(("encoding", "byte"), [("bitmask", 255), ("gaps4", 0), ("gaps8", 0)])
def test_counts_that_disagree(encoding, byte, packed, tmp_path):
    """More stored positions than values, and the other way round."""
    header = header_of(packed)
    name = next(key for key in header if key.endswith(encoding))
    start = len(packed) - max(e["data_offsets"][1] for k, e in header.items() if k != "__metadata__")
    begin, end = (start + offset for offset in header[name]["data_offsets"])
    more, fewer = bytearray(packed), bytearray(packed)
    if encoding == "gaps8":
        more[end - 1] = 0  # padding until now
    else:
        more[begin : begin + 8] = bytes([byte] * 8)
    fewer[begin : begin + 4] = bytes([255 - byte] * 4)
    refused(bytes(more), tmp_path / "more.safetensors", "more positions than its|positions only, of|lies outside")
    refused(bytes(fewer), tmp_path / "fewer.safetensors", "values but|lies outside|bits at and past")


def test_mutations_of_safetensors_never_crash(packed, tmp_path):
    """Every mutation is read or refused; what we read as plain tensors the library reads alike."""
    random = np.random.default_rng(0)
    path = tmp_path / "mutated.safetensors"
    start = 8 + int.from_bytes(packed[:8], "little")
    refusals = 0
    for _ in range(MUTATIONS):
        content = bytearray(packed)
        area = start if random.random() < 0.7 else len(content)
        for _ in range(random.integers(1, 4)):
            content[random.integers(area)] = random.integers(256)
        if random.random() < 0.1:
            del content[random.integers(len(content)) :]
        path.write_bytes(content)
        try:
            safetensors.read(path)
        except SparsifyError as error:
            assert str(path) in str(error)
            refusals += 1
        else:
            library_load(bytes(content))
    assert MUTATIONS / 10 < refusals < MUTATIONS


def test_what_the_library_refuses_we_refuse(packed, tmp_path):
    path = tmp_path / "broken.safetensors"
    for change, _ in HEADERS.values():
        content = rebuilt(packed, change(header_of(packed)))
        with pytest.raises(SafetensorError):
            library_load(content)
        path.write_bytes(content)
        with pytest.raises(FormatError):
            safetensors.read(path)


@pytest.fixture(scope="module")
def packed_onnx(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("onnx")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 60), ("y", 50))]
    weight = numpy_helper.from_array(sparse_weight((60, 50), 0.1), "w")
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), folder / "in.onnx")
    written = onnx_format.convert(folder / "in.onnx", folder / "out.onnx", encoding="packed")
    assert written.folded == 1
    return written.path.read_bytes()


@pytest.mark.filterwarnings("ignore")  # numpy on casts of damaged values
def test_mutations_of_onnx_never_crash(packed_onnx, tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "mutated.onnx"
    refusals = 0
    for _ in range(MUTATIONS // 4):
        content = bytearray(packed_onnx)
        for _ in range(random.integers(1, 4)):
            content[random.integers(len(content))] = random.integers(256)
        if random.random() < 0.1:
            del content[random.integers(len(content)) :]
        path.write_bytes(content)
        try:
            onnx_format.read(path)
        except SparsifyError as error:
            assert str(path) in str(error)
            refusals += 1
    assert refusals > MUTATIONS / 100


def onnx_with(packed_onnx: bytes, name: str, array: np.ndarray) -> bytes:
    proto = onnx.load_from_string(packed_onnx)
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return proto.SerializeToString()


ONNX = {
    "bomb": ("w.size", np.array([2**40]), "out of all proportion"),
    "past 2^63": ("w.size", np.array([2**63 - 1]), "out of all proportion"),
    "negative": ("w.size", np.array([-5]), "out of all proportion|cannot be computed"),
    "smaller": ("w.size", np.array([10]), "a position lies outside of its 10 elements"),
    "below": ("w.blocks", np.full((1, 1, 1), -70_000, np.int32), "a position lies outside"),
    "shape": ("w.shape", np.array([7, 7]), "cannot be computed"),
    "values": ("w.values", np.ones(5, np.float32), "values cannot have positions"),
    "types": ("w.offsets", np.array([b"a", b"b"], object), "cannot be computed|not a readable"),
}


@pytest.mark.parametrize("name", ONNX)
def test_broken_blocked_offsets(name, packed_onnx, tmp_path):
    part, array, match = ONNX[name]
    path = tmp_path / "broken.onnx"
    path.write_bytes(onnx_with(packed_onnx, part, array))
    tracemalloc.start()
    with pytest.raises(FormatError, match=match):
        onnx_format.read(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_a_weight_that_depends_on_itself(packed_onnx, tmp_path):
    proto = onnx.load_from_string(packed_onnx)
    add = next(node for node in proto.graph.node if node.op_type == "Add")
    add.input[0] = "w"
    onnx.save(proto, tmp_path / "loop.onnx")
    assert not onnx_format.read(tmp_path / "loop.onnx").layers
    with pytest.raises(SparsifyError):
        onnx_format.convert(tmp_path / "loop.onnx", tmp_path / "out.onnx", prune=2)
    assert not (tmp_path / "out.onnx").exists()


def test_external_data_outside_of_the_folder(packed_onnx, tmp_path):
    (tmp_path / "secret").write_bytes(b"x" * 20_000)
    (tmp_path / "model").mkdir()
    proto = onnx.load_from_string(packed_onnx)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "model/m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(FormatError, match="is not a readable ONNX model"):
        onnx_format.read(tmp_path / "model/m.onnx")
