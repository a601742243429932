"""Adversarial weight perturbation against its formula, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.classifier import Classifier
from advens.defenses import create_defense
from advens.defenses.awp import at_worst_weights
from advens.defenses.phases import Batch, Team
from advens.seeding import Draws

C, SIDE, N, GAMMA = 4, 5, 6, 0.03


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(36, C)
        ).double()


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.rand(N, 3, SIDE, SIDE, generator=g, dtype=torch.float64), torch.randint(C, (N,), generator=g)


def by_hand(f: nn.Module, loss: Any) -> tuple[float, list[Tensor]]:
    """Loss and gradients at the worst weights, by writing the weights of a copy."""
    moved = copy.deepcopy(f)
    loss(moved).backward()
    with torch.no_grad():
        for p in moved.parameters():
            if p.dim() > 1:
                p += GAMMA * (p**2).sum().sqrt() * p.grad / (p.grad**2).sum().sqrt()
            p.grad = None
    value = loss(moved)
    value.backward()
    return float(value.detach()), [p.grad for p in moved.parameters()]


def test_loss_and_gradient_at_the_moved_weights(images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    f, before = net(), [p.detach().clone() for p in net().parameters()]

    def loss(g: Any) -> Tensor:
        return F.cross_entropy(g(x), y) + g(x).square().mean()

    value, gradients = by_hand(f, loss)
    found = at_worst_weights(f, loss, GAMMA)
    found.backward()
    assert float(found.detach()) == pytest.approx(value, rel=1e-12)
    assert value > float(loss(f).detach()) + 1e-3
    for p, g, w in zip(f.parameters(), gradients, before, strict=True):
        assert torch.allclose(p.grad, g, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]
        assert torch.equal(p.detach(), w), "the weights themselves do not move"


def test_statistics_of_batch_norm_see_one_pass(images: tuple[Tensor, Tensor]) -> None:
    """The pass that finds the direction leaves no trace in the running statistics."""
    x, y = images
    f = net().train()
    at_worst_weights(f, lambda g: F.cross_entropy(g(x), y), GAMMA)
    assert int(f[1].num_batches_tracked) == 1  # type: ignore[index,arg-type]


@pytest.mark.parametrize("name", ["at", "trades"])
def test_defenses_learn_at_the_moved_weights(name: str, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    member = Classifier(net(), name="m", num_classes=C).requires_grad_(True)
    team = Team([member], torch.ones(1))
    batch = Batch(x, y, lambda: (x, y), Draws(3, N), Draws(4, N))
    plain, moved = (create_defense(name, awp=awp, eps=0.1).loss(team, batch) for awp in (0.0, GAMMA))
    assert float(moved.detach()) > float(plain.detach()) + 1e-3
