"""Time of a training step of a character-level GRU or LSTM with sparse layers, beside the same network dense in torch.

    python experiments/sparse_speed_recurrent.py [--kind gru] [--hidden 512] [--length 128] [--batch 32] [--rounds 5]

Dense is the faster of two forms: the network whose every gate is a matrix, and torch.nn.GRU or LSTM in its place.
All take turns; ratios are of times in the same round. SGD with momentum; a step that updates the masks is told apart.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from sparse_speed import seconds, stepper, update_seconds
from torch import Tensor, nn

from sparsify.architectures import build
from sparsify.nn import to_sparse
from sparsify.topology.densities import count_nonzeros
from sparsify.topology.select import random_mask

VOCABULARY = 256


class Fused(nn.Module):
    """torch.nn.GRU or LSTM, without its last state."""

    def __init__(self, kind: str, inputs: int, hidden: int) -> None:
        super().__init__()
        self.layer = {"gru": nn.GRU, "lstm": nn.LSTM}[kind](inputs, hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def network(kind: str, hidden: int, length: int, sparsity: float = 0.0) -> nn.Module:
    """The paper's network at this width, every matrix but the embedding's this sparse."""
    sizes = {"embedding": hidden // 4, "hidden": hidden, "readout": [hidden // 2, hidden // 4]}
    model = build(f"char_{kind}", sizes, (length,), VOCABULARY, VOCABULARY)
    if sparsity:
        random, masks = torch.Generator().manual_seed(0), {}
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embedding" not in name:
                shape = tuple(weight.shape)
                masks[name] = random_mask(shape, count_nonzeros(shape, sparsity), random)
        to_sparse(model, masks, torch.zeros(1, length, dtype=torch.int64))
    return model


def layer_share(model: nn.Module, tokens: Tensor) -> float:
    """Seconds that the recurrent layer alone takes of a step, forward and back."""
    x = model.embedding(tokens).detach().requires_grad_()
    start = time.perf_counter()
    y = model.recurrent(x)
    y.backward(torch.ones_like(y))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["gru", "lstm"], default="gru")
    for name, default in (("hidden", 512), ("length", 128), ("batch", 32), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--sparsities", type=lambda text: [float(s) for s in text.split(",")], default=[0.8, 0.9, 0.95, 0.98]
    )
    given = parser.parse_args()
    torch.manual_seed(0)
    tokens, following = torch.randint(0, VOCABULARY, (2, given.batch, given.length))
    models = {"dense": network(given.kind, given.hidden, given.length)}
    models["dense, fused"] = network(given.kind, given.hidden, given.length)
    models["dense, fused"].recurrent = Fused(given.kind, given.hidden // 4, given.hidden)
    models |= {f"sparse {s}": network(given.kind, given.hidden, given.length, s) for s in given.sparsities}
    steps = {name: stepper(model, tokens, following) for name, model in models.items()}
    for step in steps.values():
        step()
    times = [{name: seconds(step) for name, step in steps.items()} for _ in range(given.rounds)]
    for name in steps:
        ratios = [min(round_["dense"], round_["dense, fused"]) / round_[name] for round_ in times]
        spread = f"{median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        share = median(layer_share(models[name], tokens) for _ in range(3))
        took = f"{median(r[name] for r in times) * 1e3:7.1f} ms a step, {share * 1e3:.1f} of it in the recurrent layer"
        print(f"{name:13} {took}, {spread} of dense's speed", flush=True)
    for sparsity in given.sparsities:
        model = network(given.kind, given.hidden, given.length, sparsity)
        update = update_seconds(model, tokens, following)
        print(f"sparse {sparsity}: a step that updates the masks {update * 1e3:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
