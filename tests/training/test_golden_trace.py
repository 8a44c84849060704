"""RigL, worked out a second time: numpy float64, loops over single weights, no code of the package.

A network of two layers is trained by SGD with Nesterov momentum and weight decay. The oracle knows every
weight, momentum slot, drop and growth of 200 steps; ours, in float64, has to agree at every one of them.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sparsify.randomness import generator
from sparsify.topology.costs import plain_layers
from sparsify.topology.masks import random_masks
from sparsify.topology.schedules import UpdateSchedule
from sparsify.training.snapshot import load_method
from sparsify.training.step import Topology, TrainState, apply_masks, finish_step

STEPS, T_END, DELTA_T, ALPHA, POWER = 200, 150, 7, 0.4, 3.0
RATE, MOMENTUM, DECAY = 0.05, 0.9, 1e-3
INPUTS, HIDDEN, OUTPUTS, SAMPLES = 9, 8, 4, 12


def drop_fraction(decay: str, step: int) -> float:
    """f(t) as the paper writes it (section 3.2 and appendix G)."""
    if decay == "cosine":
        return ALPHA / 2 * (1 + math.cos(step * math.pi / T_END))
    if decay == "constant":
        return ALPHA
    if decay == "linear":
        return ALPHA * (1 - step / T_END)
    return ALPHA * (1 - step / T_END) ** POWER


class Oracle:
    """Weights, masks and momentum as lists of lists of Python floats; every sum is a loop."""

    def __init__(self, weights: list[np.ndarray], biases: list[np.ndarray], masks: list[np.ndarray]) -> None:
        self.weights, self.masks = [w.tolist() for w in weights], [m.tolist() for m in masks]
        self.biases = [b.tolist() for b in biases]
        self.weight_slots = [[[0.0] * len(row) for row in w] for w in self.weights]
        self.bias_slots = [[0.0] * len(b) for b in self.biases]
        self.first = True

    def gradients(self, x: list[list[float]], labels: list[int]):
        """Gradient of the mean cross-entropy for every weight, whether it exists or not."""
        (w1, w2), (b1, b2) = self.weights, self.biases
        g1, g2 = ([[0.0] * len(row) for row in w] for w in (w1, w2))
        h1, h2 = [0.0] * len(b1), [0.0] * len(b2)
        for sample, label in zip(x, labels, strict=True):
            before = [sum(w1[o][i] * sample[i] for i in range(INPUTS)) + b1[o] for o in range(HIDDEN)]
            hidden = [max(value, 0.0) for value in before]
            logits = [sum(w2[o][i] * hidden[i] for i in range(HIDDEN)) + b2[o] for o in range(OUTPUTS)]
            top = max(logits)
            powers = [math.exp(value - top) for value in logits]
            errors = [(powers[o] / sum(powers) - (o == label)) / SAMPLES for o in range(OUTPUTS)]
            for o in range(OUTPUTS):
                h2[o] += errors[o]
                for i in range(HIDDEN):
                    g2[o][i] += errors[o] * hidden[i]
            for o in range(HIDDEN):
                if before[o] > 0:
                    error = sum(errors[k] * w2[k][o] for k in range(OUTPUTS))
                    h1[o] += error
                    for i in range(INPUTS):
                        g1[o][i] += error * sample[i]
        return [g1, g2], [h1, h2]

    def descend(self, gradients, bias_gradients) -> None:
        """SGD with Nesterov momentum and L2, over existing weights only."""
        for layer, weight in enumerate(self.weights):
            for o, row in enumerate(weight):
                for i in range(len(row)):
                    if self.masks[layer][o][i]:
                        slot, gradient = self.weight_slots[layer][o][i], gradients[layer][o][i] + DECAY * row[i]
                        slot = gradient if self.first else MOMENTUM * slot + gradient
                        self.weight_slots[layer][o][i] = slot
                        row[i] -= RATE * (gradient + MOMENTUM * slot)
        for layer, bias in enumerate(self.biases):
            for o in range(len(bias)):
                gradient = bias_gradients[layer][o]
                slot = gradient if self.first else MOMENTUM * self.bias_slots[layer][o] + gradient
                self.bias_slots[layer][o] = slot
                bias[o] -= RATE * (gradient + MOMENTUM * slot)
        self.first = False

    def update(self, gradients, fraction: float) -> None:
        """Algorithm 1, line by line: drop, grow, start anew at 0."""
        for layer, weight in enumerate(self.weights):
            mask, places = self.masks[layer], [(o, i) for o in range(len(weight)) for i in range(len(weight[0]))]
            existing = [place for place in places if mask[place[0]][place[1]]]
            count = math.floor(fraction * len(existing))
            by_magnitude = sorted(existing, key=lambda p: (abs(weight[p[0]][p[1]]), places.index(p)))
            kept = set(by_magnitude[count:])
            others = [place for place in places if place not in kept]
            by_gradient = sorted(others, key=lambda p: (-abs(gradients[layer][p[0]][p[1]]), places.index(p)))
            grown = set(by_gradient[:count])
            for o, i in places:
                was = mask[o][i]
                mask[o][i] = (o, i) in kept or (o, i) in grown
                if not (was and mask[o][i]):
                    weight[o][i] = self.weight_slots[layer][o][i] = 0.0


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = generator(3, "golden", step)
    inputs = torch.randn(SAMPLES, INPUTS, generator=random, dtype=torch.float64)
    return inputs, (inputs[:, :OUTPUTS] + 0.3 * torch.randn(SAMPLES, OUTPUTS, generator=random)).argmax(1)


def start(decay: str) -> tuple[TrainState, Topology]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUTPUTS)).double()
    layers = plain_layers({"0.weight": (HIDDEN, INPUTS), "2.weight": (OUTPUTS, HIDDEN)})
    masks = random_masks(layers, "erdos_renyi", 0.5, generator(5, "masks"))
    apply_masks(model, masks)
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": biases}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=True)
    schedule = UpdateSchedule(DELTA_T, ALPHA, T_END, decay, POWER)
    return TrainState(model, optimizer, masks), Topology(load_method("rigl"), schedule, 5)


@pytest.mark.parametrize("decay", ["cosine", "constant", "linear", "inverse_power"])
def test_two_hundred_steps_equal_the_oracle(decay):
    state, topology = start(decay)
    names = list(state.masks)
    parameters = dict(state.model.named_parameters())
    biases = [parameters[name.replace("weight", "bias")] for name in names]
    oracle = Oracle(
        [parameters[name].detach().numpy() for name in names],
        [bias.detach().numpy() for bias in biases],
        [state.masks[name].numpy() for name in names],
    )
    grown = updates = 0
    for step in range(1, STEPS + 1):
        inputs, labels = batch(step)
        gradients, bias_gradients = oracle.gradients(inputs.tolist(), labels.tolist())
        if step % DELTA_T == 0 and step <= T_END:
            oracle.update(gradients, drop_fraction(decay, step))
            updates += 1
        else:
            oracle.descend(gradients, bias_gradients)

        nn.functional.cross_entropy(state.model(inputs), labels).backward()
        before, state = state, finish_step(state, topology)
        grown += sum(int((state.masks[name] & ~before.masks[name]).sum()) for name in names)
        for layer, name in enumerate(names):
            assert state.masks[name].tolist() == oracle.masks[layer], f"{name} at step {step}"
            expected = np.array(oracle.weights[layer])
            np.testing.assert_allclose(parameters[name].detach().numpy(), expected, rtol=0, atol=1e-12)
            slot = state.optimizer.state[parameters[name]]["momentum_buffer"].numpy()
            np.testing.assert_allclose(slot, np.array(oracle.weight_slots[layer]), rtol=0, atol=1e-12)
            np.testing.assert_allclose(biases[layer].detach().numpy(), oracle.biases[layer], rtol=0, atol=1e-12)
    assert state.updates == updates == T_END // DELTA_T
    assert state.grown == grown > 20
