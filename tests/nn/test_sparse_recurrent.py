"""Sparse GRU and LSTM layers against torch's dense ones, plain float64 steps and numerical derivatives."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsify.architectures import build
from sparsify.architectures._recurrent import GATES, Recurrent
from sparsify.engine.target import host, named
from sparsify.nn import SparseLinear, SparseRecurrent, sparse_layers, to_dense, to_sparse
from sparsify.nn.convert import adopt_gates
from sparsify.nn.memory import _LARGE, Pool
from sparsify.topology.select import random_mask, random_positions
from tests.allocations import Watcher
from tests.threads import assert_same_bits

LEVELS = ["generic", "avx2", "avx512"]
LEVELS = LEVELS[: LEVELS.index(host().level) + 1]


def layers(kind: str, inputs: int, hidden: int, density: float, seed: int = 0) -> tuple[Recurrent, SparseRecurrent]:
    """A masked dense layer and the sparse one that computes the same."""
    torch.manual_seed(seed)
    whole = nn.Sequential(Recurrent(kind, inputs, hidden))
    with torch.no_grad():
        for name, weight in whole.named_parameters():
            if weight.ndim == 2:
                random = torch.Generator().manual_seed(len(name) + seed)
                weight.mul_(random_mask(tuple(weight.shape), int(density * weight.numel()), random))
    sparse = copy.deepcopy(whole)
    for name, module in list(sparse.named_modules()):
        if isinstance(module, nn.Linear):
            sparse.set_submodule(name, SparseLinear.from_dense(module, module.weight != 0))
    adopt_gates(sparse)
    assert isinstance(sparse[0], SparseRecurrent)
    return whole[0], sparse[0]


def results(layer: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Outputs and all gradients."""
    x = x.clone().requires_grad_()
    y = layer(x)
    layer.zero_grad()
    (y * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"output": y.detach(), "input": x.grad, **found}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor], layer: SparseRecurrent, within: float) -> None:
    """Within this share of the largest entry; of dense gradients the entries that exist."""
    for name, tensor in found.items():
        other = wanted[name]
        if tensor.shape != other.shape:
            other = other.flatten()[layer.get_submodule(name.removesuffix(".weight")).positions()]
        scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
        assert torch.allclose(tensor.double(), other.double(), rtol=0, atol=within * scale), name


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", GATES)
@settings(max_examples=12, deadline=None)
@given(
    count=st.sampled_from([1, 5, 16, 33, 70, 130]), steps=st.sampled_from([1, 2, 8, 19]), inputs=st.integers(1, 40),
    hidden=st.sampled_from([1, 7, 64]), density=st.floats(0, 1), seed=st.integers(0, 20),
)  # fmt: skip
@example(count=5, steps=9, inputs=600, hidden=300, density=0.1, seed=0)  # more than a block of columns
def test_native_steps_are_plain_float64_steps(kind, level, count, steps, inputs, hidden, density, seed):
    _, layer = layers(kind, inputs, hidden, density, seed)
    layer.native(named(level))
    x, weights = torch.randn(count, steps, inputs), torch.randn(count, steps, hidden)
    found = results(layer, x, weights)
    wanted = results(layer.double(), x.double(), weights.double())
    assert_equal(found, wanted, layer, 1e-6 * (count * steps) ** 0.5)


@pytest.mark.parametrize("kind", GATES)
def test_plain_steps_are_the_dense_layer_and_their_gradients_numerical_derivatives(kind):
    dense, layer = layers(kind, 5, 7, 0.3)
    dense.double(), layer.double()
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    weights = torch.randn(3, 4, 7, dtype=torch.float64)
    assert_equal(results(layer, x, weights), results(dense, x, weights), layer, 1e-12)
    small = layers(kind, 2, 3, 0.5)[1].double()
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(dict(small.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(small, named, (x,))

    assert torch.autograd.gradcheck(run, (x, *small.parameters()))


@pytest.mark.parametrize("kind", GATES)
def test_what_is_recorded_gives_the_dense_gradients(kind):
    dense, layer = layers(kind, 20, 30, 0.2)
    x, weights = torch.randn(10, 9, 20), torch.randn(10, 9, 30)
    for gate in sparse_layers(layer).values():
        gate.tape = []
    found = results(layer, x, weights)
    wanted = results(dense, x, weights)
    assert_equal(found, wanted, layer, 1e-5)
    for name, gate in layer.named_modules():
        if isinstance(gate, SparseLinear):
            assert torch.allclose(gate.dense_gradient(3, 30), wanted[f"{name}.weight"][3:], atol=1e-4)


def test_a_value_that_is_not_finite_stays_so():
    _, layer = layers("gru", 4, 5, 0.5)
    x = torch.randn(2, 6, 4)
    x[1, 3] = torch.nan
    y = layer(x)
    assert y[0].isfinite().all() and y[1, :3].isfinite().all() and y[1, 3:].isnan().any(-1).all()


@pytest.mark.parametrize("kind", GATES)
def test_same_bits_however_many_threads_and_in_used_memory(kind):
    _, layer = layers(kind, 40, 200, 0.3)
    x, weights = torch.randn(64, 20, 40), torch.randn(64, 20, 200)
    assert_same_bits(lambda: results(layer, x, weights).values())


def test_two_passes_before_one_goes_back_do_not_share_memory():
    _, layer = layers("gru", 40, 200, 0.3)
    x = [torch.randn(64, 20, 40, requires_grad=True) for _ in range(2)]
    wanted = [torch.autograd.grad(layer(each).square().sum(), each)[0] for each in x]
    losses = [layer(each).square().sum() for each in x]
    for loss, each, gradient in zip(losses, x, wanted, strict=True):
        assert torch.equal(torch.autograd.grad(loss, each, retain_graph=True)[0], gradient)
        assert torch.equal(torch.autograd.grad(loss, each)[0], gradient)


def test_memory_is_used_again_when_nothing_uses_it():
    pool = Pool()
    first = pool.empty(_LARGE)
    place, view = first.data_ptr(), first[5:]
    del first
    other = pool.empty(_LARGE)
    assert other.data_ptr() != place, "a view is still there"
    del view
    assert pool.empty(_LARGE).data_ptr() == place


@pytest.mark.parametrize("kind", GATES)
def test_no_pass_makes_a_tensor_of_the_dense_size(kind):
    size, count = 1500, 3000
    random = torch.Generator().manual_seed(0)
    gates = [
        nn.ModuleDict(
            {
                f"{gate}_gate": SparseLinear(size, size, random_positions(size * size, count, random))
                for gate in GATES[kind]
            }
        )
        for _ in range(2)
    ]
    layer = SparseRecurrent(kind, size, *gates)
    with Watcher() as watcher:
        layer(torch.randn(3, 4, size)).square().sum().backward()
    assert count < watcher.largest < size * size / 2


@pytest.mark.parametrize("kind", GATES)
def test_models_are_converted_there_and_back(kind):
    torch.manual_seed(0)
    model = build(f"char_{kind}", {"embedding": 16, "hidden": 32, "readout": [20]}, (9,), 256, 256)
    random = torch.Generator().manual_seed(1)
    weights = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name}
    masks = {name: random_mask(tuple(p.shape), p.numel() // 5, random) for name, p in weights.items()}
    for name, mask in masks.items():
        weights[name].data.mul_(mask)
    tokens = torch.randint(0, 256, (3, 9))
    wanted, state = model.eval()(tokens), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert to_sparse(model, masks, tokens) == list(masks)
    assert isinstance(model.recurrent, SparseRecurrent) and not model.recurrent.training
    assert torch.allclose(model(tokens), wanted, atol=1e-6)
    assert torch.equal(copy.deepcopy(model)(tokens), model(tokens))
    to_dense(model)
    assert isinstance(model.recurrent, Recurrent) and torch.allclose(model(tokens), wanted, atol=1e-6)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_gates_are_sparse_together_or_not_at_all():
    torch.manual_seed(0)
    model = build("char_gru", {"embedding": 16, "hidden": 32, "readout": [20]}, (9,), 256, 256)
    tokens = torch.randint(0, 256, (3, 9))
    masks = {
        name: torch.rand(p.shape) < (0.9 if ".state." in name else 0.1)
        for name, p in model.named_parameters()
        if "_gate.weight" in name
    }
    assert to_sparse(model, masks, tokens) == [] and type(model.recurrent) is Recurrent
    del masks["recurrent.state.new_gate.weight"]
    assert to_sparse(model, masks, tokens) == []
