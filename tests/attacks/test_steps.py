"""Step-size rules by hand, and where a loop may start."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.starts import Clean, Gaussian, Uniform
from advens.attacks.steps import StepSize
from advens.errors import InputError
from advens.seeding import Draws
from advens.threat import Threat

EPS = 16 / 255


@pytest.mark.parametrize(
    ("rule", "alpha"),
    [
        ("eps/T", EPS / 20), ("2eps/T", 2 * EPS / 20), ("2*eps/T", 2 * EPS / 20),
        ("2 * eps / T", 2 * EPS / 20), ("1.25eps/T", 1.25 * EPS / 20), ("eps/10", EPS / 10),
        ("eps/5", EPS / 5), ("eps", EPS), ("0.5eps", EPS / 2), ("2/255", 2 / 255), ("0.01", 0.01),
        (0.01, 0.01),
    ],
)  # fmt: skip
def test_rules(rule: str | float, alpha: float) -> None:
    threat = Threat(eps="16/255")
    for step in (0, 7, 19):
        assert StepSize(rule).at(step, 20, threat) == pytest.approx(alpha, rel=1e-12)


def test_annealing() -> None:
    threat = Threat(eps=0.1)
    linear = [StepSize("eps", "linear").at(t, 4, threat) for t in range(4)]
    assert linear == pytest.approx([0.1, 0.075, 0.05, 0.025])
    cosine = [StepSize("eps", "cosine").at(t, 4, threat) for t in range(4)]
    wanted = [0.1 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    assert cosine == pytest.approx(wanted)
    assert cosine[2] == pytest.approx(0.05)


@pytest.mark.parametrize(
    "rule", ["eps/t", "-eps/T", "T", "", "eps/0", "0eps", "0", 0.0, -0.01, "eps//T", "2/0",
             "1.2.3eps", "eps/.", "nan", "inf", "."],
)  # fmt: skip
def test_unreadable_rules(rule: Any) -> None:
    with pytest.raises(InputError, match="step"):
        create_attack("ifgsm", step_size=rule)


def test_written_in_an_attack() -> None:
    """A rule, a number and a table mean the same part."""
    wanted = StepSize("2/255")
    assert create_attack("ifgsm", step_size="2/255").step_size == wanted  # type: ignore[attr-defined]
    assert create_attack("ifgsm", alpha="2/255").step_size == wanted  # type: ignore[attr-defined]
    assert create_attack("ifgsm", step_size=wanted).step_size == wanted  # type: ignore[attr-defined]
    annealed = create_attack("ifgsm", step_size={"anneal": "cosine"}, alpha="2/255")
    assert annealed.step_size == StepSize("2/255", "cosine")  # type: ignore[attr-defined]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", [Clean(), Uniform(), Gaussian(), Gaussian(0.5)])
def test_starts_lie_in_the_ball(start: Any, norm: str, images: Callable[..., Tensor]) -> None:
    x, threat = images(0, n=16), Threat(norm, 0.1)
    at = start.place(x, threat, Draws(0, 16))
    delta = (at - x).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert size.max() <= 0.1 + 1e-12
    assert at.min() >= 0
    assert at.max() <= 1
    assert torch.equal(at, x) == isinstance(start, Clean)


def test_uniform_start_is_uniform() -> None:
    """In l_inf a flat histogram of every pixel; in l_2 radii with r^d uniform."""
    x = torch.full((400, 3, 2, 2), 0.5, dtype=torch.float64)
    cube = (Uniform().place(x, Threat("linf", 0.1), Draws(0, 400)) - x) / 0.1
    counts = torch.histc(cube, 10, -1, 1)
    assert counts.sum() == x.numel()
    assert counts.min() > 0.8 * x.numel() / 10
    ball = (Uniform().place(x, Threat("l2", 0.1), Draws(0, 400)) - x).flatten(1)
    volume = (ball.norm(dim=1) / 0.1) ** 12
    assert volume.max() <= 1 + 1e-9
    assert volume.mean() == pytest.approx(0.5, abs=0.06)
    assert (ball.mean(0).abs() < 0.006).all(), "the ball is centred"


def test_gaussian_start_has_its_deviation() -> None:
    x = torch.full((100, 3, 4, 4), 0.5, dtype=torch.float64)
    noise = Gaussian(0.001).place(x, Threat("linf", "8/255"), Draws(0, 100)) - x
    assert noise.std().item() == pytest.approx(0.001, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=1e-4)
