"""Logit, Logit-Margin and Po+Trip against their formulas: losses, diverse inputs, TI and momentum."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.attacks.losses import PoincareTriplet
from advens.cli import invoke
from advens.errors import InputError

EPS = 16 / 255


def diverse(x: Tensor, t: int, at: Any) -> Tensor:
    """A six-pixel image as DI shows it with p = 0.7: its larger size is round(6 * 1.1) = 7."""
    draws = at.draws(t)
    if draws.number(0, 1, "di", "apply") >= 0.7:
        return x
    inner = round(6 * draws.number(1, 1.1, "di", "size"))
    top, left = (draws.integers(7 - inner + 1, 1, "di", side)[0] for side in ("top", "left"))
    canvas = torch.zeros(3, 7, 7, dtype=x.dtype)
    larger = F.interpolate(x[None], (inner, inner), mode="bilinear", align_corners=False)[0]
    canvas[:, top : top + inner, left : left + inner] = larger
    return F.interpolate(canvas[None], (6, 6), mode="bilinear", align_corners=False)[0]


def smoothed(g: Tensor) -> Tensor:
    """Convolved with a gaussian of 5 pixels whose standard deviation is 2/3, zeros outside."""
    line = torch.tensor([math.exp(-(d**2) / (2 * (2 / 3) ** 2)) for d in range(-2, 3)], dtype=g.dtype)
    kernel = torch.outer(line, line) / line.sum() ** 2
    out = torch.zeros_like(g)
    padded = F.pad(g, (2, 2, 2, 2))
    for r in range(6):
        for c in range(6):
            out[:, r, c] = (padded[:, r : r + 5, c : c + 5] * kernel).sum((1, 2))
    return out


def held(at: Any, name: str, loss: Callable[[Tensor, int], Tensor], raw: bool) -> None:
    """Steps of ``sign(m)``, with m the sum of smoothed gradients at diverse inputs."""

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        leaf = x.clone().requires_grad_()
        z = sum(model(diverse(leaf, t, at)[None])[0] for model in at.models) / len(at.models)
        (g,) = torch.autograd.grad(loss(z, i), leaf)
        g = smoothed(g)
        memory["m"] = memory.get("m", torch.zeros_like(g)) + (g if raw else g / g.abs().mean())
        return EPS / 2 * torch.sign(memory["m"])

    at.same(step, name, 4, step_size="eps/2")


def test_logit(at: Any) -> None:
    held(at, "logit", at.logit, raw=True)


def test_logit_margin(at: Any) -> None:
    def loss(z: Tensor, i: int) -> Tensor:
        first, second = sorted(z.tolist(), reverse=True)[:2]
        return at.loss(z / (first - second), i)  # type: ignore[no-any-return]

    held(at, "logit-margin", loss, raw=False)


def test_po_trip(at: Any) -> None:
    if at.target is None:
        with pytest.raises(InputError, match="loss 'po-trip' has no untargeted form"):
            at.run("po-trip", steps=1)
        return

    def loss(z: Tensor, i: int) -> Tensor:
        a, b = z / z.abs().sum(), torch.zeros_like(z)
        b[at.target[i]] = 1 - 1e-5
        borders = (1 - (a * a).sum()) * (1 - (b * b).sum())
        distance = torch.acosh(1 + 2 * ((a - b) ** 2).sum() / borders)
        s = z.abs() / (z * z).sum().sqrt()
        triplet = torch.clamp(s[at.y[i]] - s[at.target[i]] + 0.007, 0, 2.1)
        return -(distance + 0.01 * triplet)

    held(at, "po-trip", loss, raw=True)


def test_the_poincare_gradient_grows_near_the_target() -> None:
    """Where cross-entropy's vanishes: what the method is for."""
    sizes = {"poincare": list[float](), "cross-entropy": list[float]()}
    for margin in (10.0, 100.0, 1000.0):
        z = torch.tensor([[margin, 1.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
        loss = PoincareTriplet(weight=0)(z, torch.tensor([1]), torch.tensor([0]))
        a_gradient = torch.autograd.grad(loss.sum(), z)[0].abs().sum() * z.detach().abs().sum()
        cross = -F.cross_entropy(z, torch.tensor([0]))
        sizes["poincare"].append(float(a_gradient))
        sizes["cross-entropy"].append(float(torch.autograd.grad(cross, z)[0].abs().sum()))
    assert sizes["poincare"] == sorted(sizes["poincare"], reverse=False)
    assert sizes["cross-entropy"] == sorted(sizes["cross-entropy"], reverse=True)


def test_a_triplet_is_a_sample_s_own() -> None:
    """The hinge is open for the first sample and shut for the second, together as alone."""
    z = torch.tensor([[1.0, 5.0, 0.5], [9.0, 1.0, 0.5]], dtype=torch.float64)
    y, target = torch.tensor([1, 1]), torch.tensor([0, 0])
    both = PoincareTriplet(weight=1)(z, y, target)
    assert both[0] < PoincareTriplet(weight=0)(z, y, target)[0]
    assert both[1] == PoincareTriplet(weight=0)(z, y, target)[1]


def test_numbers_of_the_papers() -> None:
    for name, steps, alpha in (("logit", 300, 2), ("logit-margin", 300, 2), ("po-trip", 20, 0.8)):
        attack: Any = create_attack(name, eps="16/255")
        assert attack.passes(2) == (2 * steps, 2 * steps)
        assert attack.step_size.at(0, steps, attack.threat) == pytest.approx(alpha / 255)
        assert (attack.transforms[0].p, attack.filters[0].size) == (0.7, 5)


def test_only_targets_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused by name before anything is run."""
    there = ["--surrogates", "digits:resnet", "--data", "digits:test", "--out", str(tmp_path / "c")]
    assert invoke(["craft", "po-trip", *there]) == 2
    assert not (tmp_path / "c").exists()
    assert "'po-trip' has no untargeted form: set targeted in [threat]" in capsys.readouterr().err
    assert invoke(["attacks", "po-trip"]) == 0
    assert "targeted  always" in capsys.readouterr().out
