"""DVERGE against a transcription on networks with batch-norm and a residual, one at a time and stacked."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.classifier import Classifier
from advens.defenses import create_defense
from advens.defenses.layers import LOGITS
from advens.defenses.phases import Batch, Team
from advens.seeding import Draws
from tests.defenses.conftest import random_batch

C, SIDE, N, K = 4, 6, 5, 3
LAYERS = [0, 1, 2, LOGITS]
Weights = dict[str, Tensor]


class Residual(nn.Module):
    """Three convolutions, the last of them added to the first; one ReLU, in place, for all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(wide, 4, 3, padding=1, bias=False) for wide in (3, 4, 4)
        )
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(4) for _ in range(3))
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(x)))
        out = self.bn3(self.conv3(out))
        out += x
        logits: Tensor = self.fc(self.relu(out).mean((2, 3)))
        return logits


def member(seed: int) -> Classifier:
    """Trainable, in train mode, with statistics that are not those of any batch."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = Residual().double()
        for bn in (network.bn1, network.bn2, network.bn3):
            nn.init.normal_(bn.weight, 1, 0.3)
            nn.init.normal_(bn.running_mean, 0, 0.3)
            nn.init.uniform_(bn.running_var, 0.5, 2)
    made = Classifier(network, name=f"toy:{seed}", num_classes=C)
    return made.requires_grad_(True).train()


def run(w: Weights, x: Tensor, layer: int, train: bool) -> Tensor:
    """What goes into a ReLU, or the logits; in train mode the statistics passed on the way move."""

    def norm(z: Tensor, name: str) -> Tensor:
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        if train:
            n, old = z.numel() / 4, (mean, var)
            mean = z.mean((0, 2, 3))
            var = ((z - mean.view(1, 4, 1, 1)) ** 2).mean((0, 2, 3))
            w[f"{name}.running_mean"] = 0.9 * old[0] + 0.1 * mean.detach()
            w[f"{name}.running_var"] = 0.9 * old[1] + 0.1 * var.detach() * n / (n - 1)
        unit = (z - mean.view(1, 4, 1, 1)) / torch.sqrt(var.view(1, 4, 1, 1) + 1e-5)
        return unit * w[f"{name}.weight"].view(1, 4, 1, 1) + w[f"{name}.bias"].view(1, 4, 1, 1)

    first = norm(F.conv2d(x, w["conv1.weight"], padding=1), "bn1")
    if layer == 0:
        return first
    first = first.clamp_min(0)
    second = norm(F.conv2d(first, w["conv2.weight"], padding=1), "bn2")
    if layer == 1:
        return second
    third = norm(F.conv2d(second.clamp_min(0), w["conv3.weight"], padding=1), "bn3") + first
    if layer == 2:
        return third
    return third.clamp_min(0).mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]


def weights(f: Classifier) -> Weights:
    return {name: t.detach().clone() for name, t in f.net.state_dict().items()}


def distilled(w: Weights, x_s: Tensor, x_t: Tensor, layer: int, steps: int, train: bool) -> Tensor:
    """Momentum signs of 0.007 within 0.07 of the source, towards the target's features."""
    wanted = run(w, x_t, layer, train)
    z, v = x_s.clone(), torch.zeros_like(x_s)
    for _ in range(steps):
        leaf = z.clone().requires_grad_()
        gap = ((run(w, leaf, layer, train) - wanted) ** 2).sum()
        (g,) = torch.autograd.grad(gap, leaf)
        v = v + g / g.flatten(1).abs().sum(1).view(-1, 1, 1, 1)
        z = torch.min(torch.max(z - 0.007 * v.sign(), x_s - 0.07), x_s + 0.07).clamp(0, 1)
    return z


@pytest.fixture
def batch() -> Batch:
    return random_batch(N, SIDE, C)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("train_mode", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_distilled_images(layer: int, train_mode: bool, batch: Batch) -> None:
    """Batch-norm uses, and moves, its statistics in train mode alone; the member stays in its own mode."""
    f, x_t = member(0), batch.other()[0]
    w = weights(f)
    found = create_defense("dverge", train_mode=train_mode).distil(f, layer, batch.x, x_t)
    close(found, distilled(w, batch.x, x_t, layer, 10, train_mode))
    assert 0.05 < float((found - batch.x).abs().max()) <= 0.07 + 1e-12
    assert all(module.training for module in f.modules())
    assert all(parameter.requires_grad for parameter in f.parameters())
    for name, buffer in f.net.named_buffers():
        if "running" in name:
            close(buffer, w[name])


def test_the_features_come_nearer(batch: Batch) -> None:
    f, x_t = member(0), batch.other()[0]
    w = weights(f)
    for layer in LAYERS:
        felt = create_defense("dverge", train_mode=False).distil(f, layer, batch.x, x_t)
        wanted = run(w, x_t, layer, False)
        before, after = (((run(w, at, layer, False) - wanted) ** 2).sum() for at in (batch.x, felt))
        assert after < 0.9 * before


@pytest.mark.parametrize("stacked", ["never", "always"])
@pytest.mark.parametrize("train_mode", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_an_update(layer: int, train_mode: bool, stacked: str, batch: Batch) -> None:
    """Loss, every member's gradient and running statistics; images of the others are constants."""
    epoch = next(
        draws for draws in (Draws(seed, N) for seed in count())
        if LAYERS[draws.integers(len(LAYERS), 1, "layer")[0]] == layer
    )  # fmt: skip
    batch.epoch_draws = epoch
    members: list[Any] = [member(k) for k in range(K)]
    ws = [weights(f) for f in members]
    defense = create_defense("dverge", steps=2, train_mode=train_mode, stacked=stacked)
    loss = defense.loss(Team(members, torch.empty(0)), batch)
    loss.backward()

    felt = [distilled(w, batch.x, batch.other()[0], layer, 2, train_mode) for w in ws]
    wanted = 0.0
    for i, w in enumerate(ws):
        learned = {name: w[name].requires_grad_() for name, _ in members[i].net.named_parameters()}
        own = torch.zeros((), dtype=torch.float64)
        for j in range(K):
            if j != i:
                z = run(w, felt[j], LOGITS, True)
                own = own + sum(torch.log(torch.exp(z[n]).sum()) - z[n, batch.y[n]] for n in range(N)) / N
        gradients = torch.autograd.grad(own, list(learned.values()))
        for (name, p), g in zip(members[i].net.named_parameters(), gradients, strict=True):
            assert p.grad is not None, name
            close(p.grad, g)
        for name, buffer in members[i].net.named_buffers():
            if "running" in name:
                close(buffer, w[name].detach())
        wanted += float(own.detach())
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-9)


def test_adversarial_training_beside_it(batch: Batch) -> None:
    """The weight times each member's cross-entropy on images of its own: the difference is linear."""
    def loss(weight: float) -> float:
        team = Team([member(k).eval() for k in range(K)], torch.empty(0))  # type: ignore[misc]
        how = create_defense("dverge", steps=2, adversarial=weight, train_mode=False)
        return float(how.loss(team, batch).detach())

    team, eps = [member(k).eval() for k in range(K)], 8 / 255
    own = 0.0
    for k, f in enumerate(team):
        z = (batch.x + batch.draws.uniform(batch.x, -eps, eps, "pgd", k)).clamp(0, 1)
        for _ in range(2):
            leaf = z.clone().requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(f(leaf), batch.y, reduction="sum"), leaf)
            z = torch.min(torch.max(z + 2 / 255 * g.sign(), batch.x - eps), batch.x + eps).clamp(0, 1)
        own += float(F.cross_entropy(f(z), batch.y).detach())
    assert loss(0.5) - loss(0.0) == pytest.approx(0.5 * own, rel=1e-9)
