"""Dead channels cut out of an ONNX graph: those that nothing needs, and constants that fit into the next bias.

The smaller graph computes the same, but for the rounding of sums that no longer hold zeros or constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from onnx import helper, numpy_helper

from sparsify.errors import FormatError
from sparsify.formats import Compacted
from sparsify.formats._bits import StoredTensor, of_array, of_bits
from sparsify.formats._metadata import Metadata
from sparsify.formats._onnx_channel_rules import find_channels
from sparsify.formats._onnx_channels import Channels, Product, live_channels
from sparsify.formats._onnx_file import NAMES, OnnxModel, array_of
from sparsify.topology.costs import inference_flops
from sparsify.topology.digest import mask_digest

# By a tensor's name: axis, what stays of it, [extent] bool, and what of that is needed, [staying] bool.
Cuts = dict[str, list[tuple[int, np.ndarray, np.ndarray]]]


def compact(model: OnnxModel) -> tuple[OnnxModel, Compacted, Cuts]:
    """The model without dead channels, what was cut, and where. The model given stays as it was."""
    model = _with_tensors_for_constants(model)
    channels = find_channels(model)
    needed, stay = live_channels(channels)
    tensors, cuts = dict(model.tensors), Cuts()

    def cut(name: str, axis: int, keep: np.ndarray, live: np.ndarray | None = None) -> None:
        live = keep if live is None else live
        if not live.all():
            tensors[name] = _taken(tensors[name], axis, keep, live[keep])
            cuts.setdefault(name, []).append((axis, keep, live[keep]))

    for slot in channels.slices:
        keep = stay[slot.ids]
        if not keep.all():
            cut(_own_name(channels, tensors, slot.node, slot.place), slot.axis, keep)
        if slot.node.op_type == "Conv" and slot.place == 1:
            _set(slot.node, "group", int(keep.sum()))
    for node, ids in channels.reshapes:
        if not stay[ids].all():
            name = _own_name(channels, tensors, node, 1)
            target = array_of(tensors[name])
            tensors[name] = of_array(np.array([target[0], stay[ids].sum()]), name)
    for product in channels.products:
        if product.source is not None:
            _fold(channels, product, needed, stay, tensors)
            cut(product.weight, product.in_axis, stay[product.source.ids], needed[product.source.ids])
        cut(product.weight, product.out_axis, stay[product.out.ids], needed[product.out.ids])
    graph = model.proto.graph
    changed = {name for name in tensors if tensors[name] is not model.tensors.get(name)}
    kept = [value for value in graph.input if value.name not in changed]
    del graph.input[:], graph.value_info[:]
    graph.input.extend(kept)
    used = {name for node in graph.node for name in node.input} | channels.outside
    result = OnnxModel(model.proto, {name: tensor for name, tensor in tensors.items() if name in used})
    return result, _counted(channels, stay, result), cuts


def recorded(record: Metadata, model: OnnxModel, cuts: Cuts) -> Metadata:
    """What our metadata says of a model after the cut. Raises FormatError where the graph lacks one of its weights."""
    layers, masks, live_zeros, uncut = {}, {}, {}, dict(record.uncut_shapes)
    for name, layer in record.layers.items():
        if name not in model.tensors:
            raise FormatError(
                f"The graph of this network has no weight {name}, so it cannot be compacted. Leave --compact away."
            )
        stored = np.zeros(layer.shape, bool)
        stored.reshape(-1)[record.live_zeros.get(name, [])] = True
        for axis, keep, live in cuts.get(name, []):
            stored = _masked(np.compress(keep, stored, axis), axis, live)
        if stored.shape != tuple(layer.shape):
            uncut.setdefault(name, layer.shape)
        mask = stored | (array_of(model.tensors[name]) != 0)
        zeros = np.flatnonzero(stored)
        if zeros.size:
            live_zeros[name] = zeros.tolist()
        if layer.sparse:
            masks[name] = mask
        nonzeros = int(mask.sum()) if layer.sparse else mask.size
        changes = {"shape": list(mask.shape), "nonzeros": nonzeros, "sparsity": 1 - nonzeros / mask.size}
        depthwise = layer.groups == layer.shape[0] > 1
        layers[name] = layer.model_copy(update={**changes, "groups": len(mask) if depthwise else layer.groups})
    found = [layer.layer(name) for name, layer in layers.items()]
    total = sum(mask.size for mask in masks.values())
    update = {
        "layers": layers,
        "mask_digest": mask_digest(masks),
        "live_zeros": live_zeros,
        "uncut_shapes": uncut,
        "sparsity": 1 - sum(int(mask.sum()) for mask in masks.values()) / total if total else 0.0,
        "flops": inference_flops(found, {name: layer.nonzeros for name, layer in layers.items()}),
        "dense_flops": inference_flops(found, {}),
    }
    return record.model_copy(update=update)


def _with_tensors_for_constants(model: OnnxModel) -> OnnxModel:
    """A copy in which constants that stand in nodes of their own are tensors like the others."""
    model = model.copy()
    graph = model.proto.graph
    found = {}
    for node in list(graph.node):
        values = [a.t for a in node.attribute if a.name == "value"]
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and values and values[0].data_type in NAMES:
            found[node.output[0]] = of_array(numpy_helper.to_array(values[0]), node.output[0])
            graph.node.remove(node)
    return model.with_tensors(found)


def _fold(
    channels: Channels, product: Product, needed: np.ndarray, stay: np.ndarray, tensors: dict[str, StoredTensor]
) -> None:
    """Add what constants that are cut away contributed to the bias, and make one where there is none."""
    assert product.source is not None
    constant = np.where(needed[product.source.ids], 0, product.source.constant)
    given = np.flatnonzero(constant)
    keep = stay[product.out.ids]
    if not len(given):
        return
    weight = np.moveaxis(array_of(tensors[product.weight]), (product.out_axis, product.in_axis), (0, 1))
    taken = weight[keep][:, given].astype(np.float64)
    added = taken.reshape(*taken.shape[:2], -1).sum(axis=2) @ constant[given].astype(np.float64)
    if not added.any():
        return
    node = product.node
    if node.op_type != "MatMul" and len(node.input) > 2 and node.input[2]:
        name = _own_name(channels, tensors, node, 2)
        added = added + array_of(tensors[name]).astype(np.float64)
    else:
        name = _free(_bias_name(product.weight), tensors)
    tensors[name] = of_array(added.reshape(-1).astype(np.float32), name)
    if node.op_type != "MatMul":
        inputs = [*node.input[:2], name]
        del node.input[:]
        node.input.extend(inputs)
        return
    output = node.output[0]
    node.output[0] = f"{output}.product"
    nodes = channels.model.proto.graph.node
    add = helper.make_node("Add", [node.output[0], name], [output], name=f"{name}.add")
    nodes.insert(list(nodes).index(node) + 1, add)


def _bias_name(weight: str) -> str:
    return f"{weight.removesuffix('.weight')}.bias"


def _free(name: str, tensors: dict[str, StoredTensor]) -> str:
    while name in tensors:
        name += "_"
    return name


def _own_name(channels: Channels, tensors: dict[str, StoredTensor], node: object, place: int) -> str:
    """The name of a node's constant, which becomes one of its own where others read it, too."""
    inputs = node.input  # type: ignore[attr-defined]
    name: str = inputs[place]
    if channels.uses[name] < 2 and name not in channels.outside:
        return name
    own = _free(f"{name}.{node.output[0]}", tensors)  # type: ignore[attr-defined]
    tensors[own] = tensors[name]
    channels.uses[name] -= 1
    channels.uses[own] = 1
    inputs[place] = own
    return own


def _set(node: object, name: str, value: int) -> None:
    for entry in node.attribute:  # type: ignore[attr-defined]
        if entry.name == name:
            entry.i = value


def _taken(tensor: StoredTensor, axis: int, keep: np.ndarray, live: np.ndarray) -> StoredTensor:
    """What stays of a tensor along an axis, with zeros where it is not needed."""
    shape = (*tensor.shape[:axis], int(keep.sum()), *tensor.shape[axis + 1 :])

    def chunks() -> Iterator[np.ndarray]:
        kept = np.compress(keep, tensor.bits().reshape(tensor.shape), axis)
        return of_bits(_masked(kept, axis, live).reshape(-1), tensor.dtype).chunks()

    return replace(tensor, shape=shape, chunks=chunks)


def _masked(array: np.ndarray, axis: int, live: np.ndarray) -> np.ndarray:
    """Zeros, or False, in the place of what is not live along an axis."""
    shape = [1] * array.ndim
    shape[axis] = len(live)
    return array if live.all() else array * live.reshape(shape).astype(array.dtype)


def _counted(channels: Channels, stay: np.ndarray, result: OnnxModel) -> Compacted:
    kept, total, weights, all_weights, nonzeros = 0, 0, 0, 0, 0
    for product in channels.products:
        keep = stay[product.out.ids]
        kept, total = kept + int(keep.sum()), total + len(keep)
        weights += result.tensors[product.weight].size
        all_weights += channels.model.tensors[product.weight].size
        nonzeros += int(np.count_nonzero(array_of(channels.model.tensors[product.weight])))
        nonzeros -= int(np.count_nonzero(array_of(result.tensors[product.weight])))
    return Compacted(total - kept, total, all_weights - weights, all_weights, nonzeros)
