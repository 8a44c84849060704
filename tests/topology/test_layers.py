"""Layers are found in the order of use, with the work that they do, and the model is left as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from sparsify.errors import RecipeError
from sparsify.topology.costs import Layer
from sparsify.topology.layers import find_layers


class Odd(nn.Module):
    """Defined in one order and used in another, with a weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.twice = nn.Linear(8, 8)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.unused = nn.Linear(5, 5)

    def forward(self, x):
        x = self.norm(self.depthwise(self.first(x)))
        x = x.flatten(1)[:, :8]
        return self.last(self.twice(self.twice(x)))


class Direct(nn.Module):
    """Parameters that no module of torch's holds: on the right of products in every way, and otherwise used."""

    def __init__(self) -> None:
        super().__init__()
        self.input_first = nn.Parameter(torch.randn(6, 4))
        self.column = nn.Parameter(torch.randn(4, 1))
        self.gates = nn.ParameterList([torch.randn(5, 1) for _ in range(2)])
        self.einsum = nn.Parameter(torch.randn(10, 3))
        self.query = nn.Parameter(torch.randn(2, 3))
        self.added = nn.Parameter(torch.randn(2, 3))

    def forward(self, x):  # [n, 7, 6]
        x = torch.addmm(torch.zeros(4), x.flatten(0, 1), self.input_first) @ self.column
        x = nn.functional.linear(x, torch.cat(list(self.gates)))  # two weights below each other
        x = torch.einsum("ti,io->to", x, self.einsum)
        return self.query @ x.T + (self.added @ x.T)


def found(model: nn.Module, *shape: int, rules: dict | None = None) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(model, torch.zeros(*shape), rules)}


def test_layers_in_order_of_use_with_their_positions():
    layers = found(Odd(), 1, 2, 8, 8)
    assert list(layers) == ["first.weight", "depthwise.weight", "twice.weight", "last.weight"]
    assert layers["first.weight"].positions == 16  # 4 x 4 outputs
    assert layers["first.weight"].flops(10) == 2 * 10 * 16 + 4 * 16
    assert layers["twice.weight"].positions == 2
    assert [layer.sparse for layer in layers.values()] == [True, False, True, True]


def test_model_is_left_as_it_was():
    model = Odd().train()
    model.norm.eval()
    model.last = weight_norm(model.last)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_layers(model, torch.ones(1, 2, 8, 8))
    assert model.training and not model.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_without_memory_is_as_good():
    with torch.device("meta"):
        layers = find_layers(Odd(), torch.zeros(1, 2, 8, 8))
    assert layers == find_layers(Odd(), torch.zeros(1, 2, 8, 8))


def test_samples_of_a_batch_are_not_uses():
    assert found(Odd(), 5, 2, 8, 8) == found(Odd(), 1, 2, 8, 8)


def test_parameters_that_are_multiplied_by_without_a_module():
    layers = found(Direct(), 2, 7, 6)
    assert list(layers) == ["input_first", "column", "gates.0", "gates.1", "einsum"]  # not the query, an input
    assert [layer.axis for layer in layers.values()] == [1, 1, 0, 0, 1]
    assert [layer.outputs for layer in layers.values()] == [4, 1, 5, 5, 3]
    assert all(layer.positions == 7 for layer in layers.values())


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_convolutions_of_any_dimension_and_their_groups(kind):
    dimensions = int(kind.__name__[4])
    layer = found(kind(4, 6, 3, groups=2), 1, 4, *[5] * dimensions)["weight"]
    assert layer.positions == 3**dimensions and layer.outputs == 6
    assert layer.matrix_shape == (6, 2, *[3] * dimensions)  # fan-in 2, not 4
    transposed = getattr(nn, kind.__name__.replace("Conv", "ConvTranspose"))
    layer = found(transposed(4, 6, 3, groups=2), 1, 4, *[5] * dimensions)["weight"]
    assert layer.shape[:2] == (4, 3) and layer.outputs == 6
    assert layer.matrix_shape == (6, 2, *[3] * dimensions)
    assert layer.positions == 5**dimensions  # each weight meets every input once


@pytest.mark.parametrize("separate", [False, True])
def test_attention_is_found_although_it_calls_no_linear_layer(separate):
    model = nn.MultiheadAttention(8, 2, batch_first=True, kdim=6 if separate else None, vdim=6 if separate else None)
    query, key = torch.zeros(1, 5, 8), torch.zeros(1, 7, 6 if separate else 8)
    layers = {layer.name: layer for layer in find_layers(model, (query, key, key))}
    if separate:
        assert [layer.positions for layer in layers.values()] == [5, 7, 7, 5]
        assert all(layer.parts == 1 for layer in layers.values())
    else:
        assert list(layers) == ["in_proj_weight", "out_proj.weight"]
        packed = layers["in_proj_weight"]
        assert packed.parts == 3 and packed.matrix_shape == (8, 8)
        assert packed.matrices == ["in_proj_weight[0]", "in_proj_weight[1]", "in_proj_weight[2]"]
        assert packed.positions == round((5 + 7 + 7) / 3)


def test_encoder_layers_are_found_although_torch_has_one_operation_for_them():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    layers = found(model, 1, 5, 8)
    assert len(layers) == 8 and all(layer.positions == 5 for layer in layers.values())
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_every_gate_is_a_matrix_of_its_own(kind, gates):
    layers = found(kind(4, 6, num_layers=2, bidirectional=True, batch_first=True), 1, 5, 4)
    assert len(layers) == 8
    assert all(layer.parts == gates and layer.matrix_shape[0] == 6 for layer in layers.values())
    assert all(layer.positions == 5 for layer in layers.values())


def test_cells_have_gates_too():
    layers = find_layers(nn.LSTMCell(4, 6), torch.zeros(1, 4))
    assert {layer.name: layer.parts for layer in layers} == {"weight_ih": 4, "weight_hh": 4}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.middle(self.embedding(tokens)))


def test_embeddings_are_dense_unless_asked_for_and_tied_weights_count_once():
    tokens = torch.zeros(1, 5, dtype=torch.long)
    embedding, middle = find_layers(Tied(), tokens)
    assert (embedding.name, embedding.sparse, embedding.positions) == ("embedding.weight", False, 5)
    assert middle.sparse
    for selector in ("type:Embedding", "head", "head.weight", "embedding"):  # any of its names
        assert find_layers(Tied(), tokens, {selector: "sparse"})[0].sparse
    alone = find_layers(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)), tokens)
    assert [(layer.sparse, layer.positions) for layer in alone] == [(False, 0), (True, 5)]


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_parametrized_weights_are_their_parameter_where_zeros_carry_over(norm):
    model = nn.Sequential(norm(nn.Linear(4, 6)), nn.Linear(6, 2))
    layers = found(model, 1, 4)
    first = next(iter(layers.values()))
    assert first.name.startswith("0.parametrizations.weight.original") and first.shape == (6, 4)
    with torch.no_grad():
        dict(model.named_parameters())[first.name][:, 1] = 0
    assert torch.equal(model[0].weight != 0, torch.tensor([True, False, True, True]).expand(6, 4))
    assert not found(model, 1, 4, rules={"0.weight": "dense"})[first.name].sparse


def test_weights_whose_zeros_would_not_stay_are_left_alone():
    layers = found(nn.Sequential(orthogonal(nn.Linear(4, 4)), nn.Linear(4, 2)), 1, 4)
    assert list(layers) == ["1.weight"]


def test_inputs_by_name_or_by_a_function():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, *, x, scale):
            return self.linear(x) * scale

    model, inputs = Named(), {"x": torch.zeros(4, 3), "scale": 2.0}
    assert find_layers(model, inputs)[0].positions == 1
    one = {"x": torch.zeros(1, 3), "scale": 1.0}
    assert find_layers(model, lambda: model(**one)) == find_layers(model, inputs)


def test_rules_in_their_order():
    rules = {
        "*": "dense",
        "twice": "sparse",
        "type:Conv2d": {"sparsity": 0.5, "budget": "outside"},
        "layer:depthwise": {"sparsity": 0.25, "budget": "inside"},
        "layer:last": {"parts": 3},
    }
    first, depthwise, twice, last = find_layers(Odd(), torch.zeros(1, 2, 8, 8), rules)
    assert (first.own, first.inside, first.sparse) == (0.5, False, True)
    assert (depthwise.own, depthwise.inside, depthwise.sparse) == (0.25, True, True)
    assert twice == replace(twice, sparse=True, own=None)
    assert not last.sparse and last.parts == 3


@pytest.mark.parametrize(
    ("selector", "near"),
    [
        ("firts.weight", "first.weight"),
        ("type:Conv3d", "type:Conv2d"),
        ("layer:middle", "layer:first, layer:last, layer:depthwise"),
        ("norm.weight", "first.weight"),  # there, but nothing is multiplied by it as a matrix
    ],
)
def test_a_selector_of_nothing_names_near_ones(selector, near):
    with pytest.raises(RecipeError, match=r"selects none") as error:
        find_layers(Odd(), torch.zeros(1, 2, 8, 8), {selector: "dense"})
    assert near in str(error.value)


def test_parts_that_do_not_divide():
    with pytest.raises(RecipeError, match=r"5 parts of last\.weight, whose 3 outputs"):
        find_layers(Odd(), torch.zeros(1, 2, 8, 8), {"last": {"parts": 5}})
