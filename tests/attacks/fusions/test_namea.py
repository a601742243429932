"""NAMEA against its two walks, one image at a time, with Grad-CAM written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.attacks.layers import as_map
from advens.errors import InputError
from tests.attacks.fusions.conftest import agree, length, make, mean_one

ROUNDS, ETA = 2, 0.5


class Staged(nn.Module):
    """Two stages, of which the second has too few positions for a mask."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.layer1, self.layer2 = nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(5, 6, 3, 2, 1)
            self.head = nn.Linear(24, 5)
            for p in self.parameters():
                p.data.mul_(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.layer2(torch.tanh(self.layer1(x)))).flatten(1))
        return out


def heat(model: Staged, x: Tensor, label: int) -> Tensor:
    """``ReLU(sum_c w_c a_c)`` of the first stage, scaled to [0, 1] and to 8 x 8."""
    a = model.layer1(x[None]).detach()[0].requires_grad_()
    z = model.head(torch.tanh(model.layer2(torch.tanh(a[None]))).flatten(1))[0, label]
    (g,) = torch.autograd.grad(z, a)
    found = torch.zeros(4, 4, dtype=x.dtype)
    for c in range(5):
        found = found + g[c].sum() / 16 * a.detach()[c]
    found = found.clamp_min(0)
    low, high = float(found.min()), float(found.max())
    if high > low:
        found = (found - low) / (high - low)
    return F.interpolate(found[None, None], (8, 8), mode="bilinear", align_corners=False)[0, 0]


def transcribed(at: Any, t: int, i: int, x: Tensor, mask: str, fill: str) -> Tensor:
    draws = at.draws(t)
    order = [k for turn in range(ROUNDS) for k in draws.permutation(at.k, "namea", turn)]

    def unit(g: Tensor) -> Tensor:
        return mean_one(g) if at.norm == "linf" else g / length(g)

    u, a, masks = x, torch.zeros_like(x), []
    for j, k in enumerate(order):
        m = (heat(at.models[k], u, int(at.y[i])) >= ETA).to(x)
        if mask == "shifted":
            first = torch.zeros(len(at.x), 2, dtype=x.dtype)
            down, right = (int(8 * v) for v in draws.uniform(first, 0, 1, "namea", "shift", j)[i])
            m = torch.tensor([[m[(r - down) % 8, (c - right) % 8] for c in range(8)] for r in range(8)])
        masks.append(torch.zeros_like(m) if mask == "none" else m)
        a = a + unit(at.own(i, k, u))
        u = at.step(u, i, at.alpha, a)
    v, b = x, torch.zeros_like(x)
    for j, k in enumerate(order):
        xi = draws.normal(at.x, 1.0, "namea", "fill", j)[i] * (fill == "noise")
        for r in range(8):
            for c in range(8):
                if masks[j][r, c]:
                    v = v.clone()
                    v[:, r, c] = xi[:, r, c].clip(0, 1)
        b = b + unit(at.own(i, k, v))
        v = at.step(v, i, at.alpha, b)
    return unit(a) + unit(b) * (1 - masks[-1])


@pytest.mark.parametrize(
    ("k", "n", "norm", "targeted", "mask", "fill"),
    [(1, 7, "linf", False, "attention", "noise"), (3, 1, "linf", True, "attention", "noise"),
     (3, 7, "l2", False, "attention", "noise"), (2, 3, "linf", False, "shifted", "noise"),
     (2, 3, "linf", True, "none", "noise"), (2, 3, "linf", False, "attention", "zero")],
)  # fmt: skip
def test_namea(k: int, n: int, norm: str, targeted: bool, mask: str, fill: str) -> None:
    models = [Staged(seed).double().eval().requires_grad_(False) for seed in range(k)]
    at = make(k, n, norm, targeted, models=models)
    options = {"rounds": ROUNDS, "eta": ETA, "mask": mask, "fill": fill}
    found = at.run("namea", **{f"fusion.{key}": value for key, value in options.items()})
    agree(found, at.alone(lambda t, i, x, state: transcribed(at, t, i, x, mask, fill)))
    if mask == "attention":
        covered = [float((heat(m, x, int(label)) >= ETA).double().mean()) for m in models
                   for x, label in zip(at.x, at.y, strict=True)]  # fmt: skip
        assert 0 < sum(covered) / len(covered) < 1


def test_passes() -> None:
    """12 K gradients a step as released; without masks as many as two walks take."""
    assert create_attack("namea", steps=10).passes(4) == (480, 480)
    assert create_attack("namea", steps=10, mask="none").passes(4) == (320, 320)
    assert create_attack("namea", steps=1, mask="shifted", rounds=1).passes(3) == (9, 9)


def test_maps_of_any_layout() -> None:
    x = torch.zeros(2, 3, 16, 16)
    a = torch.arange(2 * 5 * 4 * 4.0).view(2, 5, 4, 4)
    assert torch.equal(as_map(a, x), a)
    assert torch.equal(as_map(a.movedim(1, 3), x), a)
    tokens = a.flatten(2).transpose(1, 2)
    assert torch.equal(as_map(tokens, x), a)
    assert torch.equal(as_map(torch.cat([torch.ones(2, 2, 5), tokens], 1), x), a)
    wide, b = torch.zeros(2, 3, 16, 32), torch.rand(2, 5, 4, 8)
    assert torch.equal(as_map(b.movedim(1, 3), wide), b)
    assert math.prod(as_map(b, wide).shape) == b.numel()


def test_refusals() -> None:
    x, y = torch.rand(1, 3, 4, 4), torch.zeros(1).long()
    small = Staged(0).eval()
    small.head = nn.Linear(6, 5)
    with pytest.raises(InputError, match="no stage of a surrogate ends with 16 positions or more"):
        create_attack("namea")(small, x, y)
    with pytest.raises(InputError, match="'namea' finds no stages in 'Sequential'"):
        create_attack("namea")(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), x, y)
    with pytest.raises(InputError, match="'fia' does not go with the fusion 'namea', which taps the"):
        create_attack("namea", feature="fia")
    for option in ({"rounds": 0}, {"eta": 0}, {"mask": "random"}):
        with pytest.raises(InputError):
            create_attack("namea", **option)
