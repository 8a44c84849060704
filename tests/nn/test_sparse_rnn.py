"""SparseRNN against torch.nn.GRU and LSTM with masked weights in float64, and numerical derivatives."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsify.errors import SparsityError
from sparsify.nn import SparseRNN, sparse_layers, to_dense, to_sparse
from sparsify.nn.rnn import KINDS
from sparsify.topology.select import random_mask, random_positions
from tests.allocations import Watcher

TYPES = list(KINDS)


def masked(dense: nn.RNNBase, density: float, seed: int = 0) -> dict[str, Tensor]:
    """Random masks by the weight's name, which the weights are multiplied by."""
    random, masks = torch.Generator().manual_seed(seed), {}
    for name, weight in dense.named_parameters():
        if weight.ndim == 2:
            masks[name] = random_mask(tuple(weight.shape), int(density * weight.numel()), random)
            weight.data.mul_(masks[name])
    return masks


def results(module: nn.Module, x: Tensor, hx, weights: Tensor) -> dict[str, Tensor]:
    """Outputs, last states and all gradients, by name."""
    x, hx = x.clone().requires_grad_(), [state.clone().requires_grad_() for state in hx or ()]
    out, last = module(x, *([hx[0] if len(hx) == 1 else tuple(hx)] if hx else []))
    last = [last] if isinstance(last, Tensor) else list(last)
    module.zero_grad()
    (out.square().mul(weights).sum() + sum((i + 1) * state.sin().sum() for i, state in enumerate(last))).backward()
    found = {f"parameter {name}": parameter.grad for name, parameter in module.named_parameters()}
    found |= {f"start {i}": state.grad for i, state in enumerate(hx)} | {f"last {i}": s for i, s in enumerate(last)}
    return {"out": out, "x": x.grad, **found}


@pytest.mark.parametrize("kind", TYPES)
@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(1, 3), bias=st.booleans(), batch_first=st.booleans(), both=st.booleans(), starts=st.booleans(),
    count=st.sampled_from([None, 1, 5, 33]), steps=st.sampled_from([1, 2, 9]), inputs=st.integers(1, 30),
    hidden=st.sampled_from([1, 7, 40]), density=st.floats(0, 1), seed=st.integers(0, 20),
)  # fmt: skip
def test_it_is_the_masked_dense_module(
    kind, layers, bias, batch_first, both, starts, count, steps, inputs, hidden, density, seed
):
    torch.manual_seed(seed)
    dense = kind(inputs, hidden, layers, bias=bias, batch_first=batch_first, bidirectional=both)
    layer = SparseRNN.from_dense(dense, masked(dense, density, seed))
    batch = [] if count is None else [count]
    x = torch.randn([*batch, steps] if batch_first else [steps, *batch]).unsqueeze(-1) * torch.randn(inputs)
    shape = [layers * (1 + both), *batch, hidden]
    hx = [torch.randn(shape) for _ in range(1 + (kind is nn.LSTM))] if starts else None
    weights = torch.randn(hidden * (1 + both))
    found = results(layer, x, hx, weights)
    dense.double()
    wanted = results(dense, x.double(), hx and [state.double() for state in hx], weights.double())
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            tensor = tensor.flatten()[layer.gates[name.removeprefix("parameter ")].positions()]
        scale = max(1.0, float(tensor.detach().abs().max())) if tensor.numel() else 1.0
        assert torch.allclose(found[name].double(), tensor, rtol=0, atol=3e-5 * scale), name


@pytest.mark.parametrize("kind", TYPES)
def test_gradients_of_the_plain_steps_are_numerical_derivatives(kind):
    torch.manual_seed(0)
    dense = kind(2, 3, 2, bidirectional=True).double()
    layer = SparseRNN.from_dense(dense, masked(dense, 0.5))
    assert layer.weight_hh_l0.dtype == torch.float64
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    hx = [torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(1 + (kind is nn.LSTM))]

    def run(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        starts, parameters = others[: len(hx)], others[len(hx) :]
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        given = starts[0] if len(hx) == 1 else starts
        out, last = torch.func.functional_call(layer, named, (x, given))
        return (out, last) if isinstance(last, Tensor) else (out, *last)

    assert torch.autograd.gradcheck(run, (x, *hx, *layer.parameters()))


@pytest.mark.parametrize("kind", TYPES)
def test_what_dropout_drops_between_layers_is_what_torch_drops(kind):
    dense = kind(6, 20, 3, dropout=0.5, batch_first=True)
    layer = SparseRNN.from_dense(dense, masked(dense, 0.3))
    x = torch.randn(4, 5, 6)
    torch.manual_seed(1)
    wanted = dense(x)[0]
    torch.manual_seed(1)
    assert torch.allclose(layer(x)[0], wanted, atol=1e-5)
    assert torch.allclose(layer.eval()(x)[0], dense.eval()(x)[0], atol=1e-5)
    assert not torch.allclose(layer(x)[0], wanted, atol=1e-2)


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_recorded_gives_the_dense_gradients(kind):
    torch.manual_seed(0)
    dense = kind(20, 30, 2, bidirectional=True)
    layer = SparseRNN.from_dense(dense, masked(dense, 0.2))
    x, weights = torch.randn(9, 10, 20), torch.randn(60)
    gates = sparse_layers(layer)
    assert list(gates) == [name for name, weight in dense.named_parameters() if weight.ndim == 2]
    for gate in gates.values():
        gate.tape = []
    results(layer, x, None, weights)
    results(dense, x, None, weights)
    for name, gate in gates.items():
        gradient = dense.get_parameter(name).grad
        assert torch.allclose(gate.dense_gradient(3, 75), gradient[3:75], atol=1e-4 * float(gradient.abs().max())), name


class Tagger(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], packs: bool = False):
        super().__init__()
        self.rnn, self.head, self.packs = kind(16, 24, 2, batch_first=True), nn.Linear(24, 3), packs

    def forward(self, x: Tensor) -> Tensor:
        if self.packs:
            x = nn.utils.rnn.pack_padded_sequence(x, [x.shape[1]] * len(x), batch_first=True)
        found = self.rnn(x)[0]
        return self.head(nn.utils.rnn.pad_packed_sequence(found, batch_first=True)[0] if self.packs else found)


@pytest.mark.parametrize("kind", TYPES)
def test_models_are_converted_there_and_back(kind):
    torch.manual_seed(0)
    model, x = Tagger(kind).eval(), torch.randn(3, 7, 16)
    masks = {f"rnn.{name}": mask for name, mask in masked(model.rnn, 0.2).items()}
    wanted, state = model(x), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    assert to_sparse(model, masks, x) == list(masks) == list(sparse_layers(model))
    assert isinstance(model.rnn, SparseRNN) and not model.rnn.training
    assert [name for name, _ in model.named_parameters()] == names, "optimizers know them by their number"
    assert torch.allclose(model(x), wanted, atol=1e-6)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    to_dense(model)
    assert type(model.rnn) is kind and torch.allclose(model(x), wanted, atol=1e-6)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_state_dict_holds_positions_and_loads_in_any_order():
    dense = nn.GRU(5, 6)
    layer, other = (SparseRNN.from_dense(dense, masked(dense, 0.4, seed)) for seed in (0, 0))
    other = SparseRNN.from_dense(nn.GRU(5, 6), masked(nn.GRU(5, 6), 0.4, 1))
    state = layer.state_dict()
    shuffle = torch.randperm(len(state["weight_ih_l0"]))
    state |= {name: state[name][shuffle] for name in ("weight_ih_l0", "weight_ih_l0_positions")}
    x = torch.randn(4, 3, 5)
    other.load_state_dict(state)
    assert torch.equal(other(x)[0], layer(x)[0])
    with pytest.raises(RuntimeError, match="size mismatch"):
        SparseRNN.from_dense(nn.GRU(5, 6), masked(nn.GRU(5, 6), 0.5)).load_state_dict(state)


def test_what_stays_dense():
    x = torch.randn(3, 7, 16)
    packing = Tagger(nn.GRU, packs=True)
    masks = {f"rnn.{name}": mask for name, mask in masked(packing.rnn, 0.2).items()}
    assert to_sparse(packing, masks, x) == [] and type(packing.rnn) is nn.GRU, "packed sequences"
    model = Tagger(nn.GRU)
    assert to_sparse(model, {name: mask for name, mask in masks.items() if "l1" in name}, x) == [], "a mask is missing"
    dense = {name: torch.ones_like(mask) if "hh" in name else mask for name, mask in masks.items()}
    assert to_sparse(model, dense, x) == [] and type(model.rnn) is nn.GRU, "too dense"
    assert not SparseRNN.can_stand_for(nn.LSTM(4, 5, proj_size=3)) and not SparseRNN.can_stand_for(nn.RNN(4, 5))


@pytest.mark.parametrize("kind", TYPES)
def test_no_pass_makes_a_tensor_of_the_dense_size(kind):
    size, count = 1000, 3000
    random = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        dense = kind(size, size, bias=False)
    flat = {name: random_positions(w.numel(), count, random) for name, w in dense.named_parameters()}
    layer = SparseRNN(dense, flat)
    with Watcher() as watcher:
        layer(torch.randn(4, 3, size))[0].square().sum().backward()
    assert count < watcher.largest < size * size, "a weight has three or four times as many"


@pytest.mark.parametrize("x, hx", [((0, 2, 4), None), ((3, 2, 5), None), ((3, 2, 4), (1, 3, 5)), ((3, 4), (1, 2, 5))])
def test_shapes_that_do_not_fit_are_an_error(x, hx):
    dense = nn.GRU(4, 5)
    layer = SparseRNN.from_dense(dense, masked(dense, 0.4))
    with pytest.raises(SparsityError, match="features|initial state"):
        layer(torch.zeros(x), hx and torch.zeros(hx))
