"""Every attack made of parts, in l_2: how long a step is, where it leads, and that gradients have no size.

The walk is over the registry. Linear surrogates have one best point in the ball, which is written down
here; attacks with random views of the image are held to the ball's edge alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks import attack_info, create_attack
from advens.attacks.attack import ComposedAttack
from advens.attacks.registry import RECIPES, override
from advens.threat import Threat
from tests.attacks.conftest import among

EPS, SIDE = 0.1, 8
NAMES = [
    name for name in RECIPES
    if isinstance(create_attack(name), ComposedAttack) and "l2" in attack_info(name).norms
]  # fmt: skip
names = pytest.mark.parametrize("name", NAMES)
of_logits = pytest.mark.parametrize(
    "name", [name for name in NAMES if create_attack(name).feature is None]  # type: ignore[attr-defined]
)
OTHER_VIEWS = {
    "difgsm", "bsr", "pna-patchout", "anda", "sia", "us-mm", "dem", "decowa", "ops", "mfi", "ssm-p",
    "logit", "logit-margin", "po-trip", "l2t", "cfm", "ftm",
    "everywhere-cfm", "su", "fft", "logit-angle",
}  # fmt: skip
"""These show a linear surrogate something else than the image, and it has another gradient there."""
ATTRIBUTIONS = {"mig", "taig-s", "taig-r", "mumodig"}
"""These multiply gradients with images."""


BLIND = {"namea": {"mask": "none"}}
"""Options without which an attack looks for stages inside a surrogate."""


class Linear(nn.Module):
    """Two classes: the margin of class 1 over class 0 is ``w . x + b``."""

    def __init__(self, w: Tensor, b: float = -3.0) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w.flatten()), b

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1) @ self.w + self.b
        return torch.stack([-margin / 2, margin / 2], 1)


@pytest.fixture
def w() -> Tensor:
    """A slope, (3, 8, 8)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, SIDE, SIDE, generator=generator, dtype=torch.float64)


@pytest.fixture
def grey() -> Tensor:
    """Images far from black and white: CWA's walk, several eps long, stays in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    return 0.4 + 0.2 * torch.rand(2, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)


def length(delta: Tensor) -> Tensor:
    return (delta.flatten(1) ** 2).sum(1).sqrt()


def smoothed(w: Tensor) -> Tensor:
    """``w`` under TI's published kernel: a normal density, three standard deviations wide in three pixels."""
    line = torch.exp(-(torch.arange(-3.0, 4.0, dtype=torch.float64) ** 2) / 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    return F.conv2d(w[:, None], kernel[None, None], padding=3)[:, 0]


@of_logits
def test_a_step_is_alpha_long(name: str, w: Tensor, grey: Tensor) -> None:
    attack = create_attack(
        name, norm="l2", eps=EPS, steps=1, step_size=0.03, start="clean", loss="margin", changes=[],
        **BLIND.get(name, {}),
    )
    moved = attack([Linear(w), Linear(w)], grey, torch.zeros(2).long()) - grey
    torch.testing.assert_close(length(moved), torch.full((2,), 0.03, dtype=torch.float64))


@names
def test_alpha_is_the_same_part_of_eps_in_both_norms(name: str) -> None:
    """No recipe's step is a number of l_inf."""
    attack: Any = create_attack(name)
    far, near = Threat("l2", 3.0), Threat("linf", 0.1)
    for step in range(3):
        alphas = [attack.step_size.at(step, attack.steps, ball) / ball.radius for ball in (far, near)]
        assert alphas[0] == pytest.approx(alphas[1])


@of_logits
@pytest.mark.parametrize("targeted", [False, True])
def test_two_steps_reach_the_best_point_of_the_ball(
    name: str, targeted: bool, w: Tensor, grey: Tensor, small: Callable[..., Any]
) -> None:
    """``x + eps w / ||w||``, projected from 1.5 eps away; along the smoothed w where gradients are."""
    attack = override(
        small(name, norm="l2", eps=EPS, loss="margin", changes=[], start="clean", **BLIND.get(name, {})),
        steps=2, step_size="3eps/4",
    )  # fmt: skip
    y = torch.zeros(2).long()
    moved = attack([Linear(w), Linear(w)], grey, y, y + 1 if targeted else None) - grey
    torch.testing.assert_close(length(moved), torch.full((2,), EPS, dtype=torch.float64))
    if name not in OTHER_VIEWS | ATTRIBUTIONS:
        slope = smoothed(w) if name == "tifgsm" else w
        best = EPS * slope / float((slope**2).sum()) ** 0.5
        torch.testing.assert_close(moved, best.expand_as(moved), rtol=0, atol=1e-9)


def test_pgd_reaches_the_best_point_from_a_random_one(w: Tensor, grey: Tensor) -> None:
    attack = create_attack("pgd", norm="l2", eps=EPS, loss="margin", steps=40, step_size="eps/2")
    moved = attack(Linear(w), grey, torch.zeros(2).long()) - grey
    best = EPS * w / float((w**2).sum()) ** 0.5
    torch.testing.assert_close(moved, best.expand_as(moved), rtol=0, atol=1e-6)


class Scaled(nn.Module):
    """A model with its logits times a factor."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(x) * self.factor
        return z


def _scaled(name: str, model: nn.Module, factor: float) -> nn.Module:
    """Logits times a factor; inside the head where an attack reads blocks by it."""
    if name != "se":
        return Scaled(model, factor)
    model = copy.deepcopy(model)
    model.head.weight.data.mul_(factor)
    model.head.bias.data.mul_(factor)
    return model


def deaf_to_scale(name: str, factor: float) -> tuple[int, dict[str, Any]]:
    """How many surrogates, and the options under which an attack may not depend on the logits' scale."""
    attack: Any = create_attack(name)
    fusion = type(attack.fusion).__name__
    if hasattr(attack.feature, "score"):
        return 2, {"score": "logit"}  # a probability knows the scale
    if name == "tap":
        return 2, {"weight": 0, "smooth": 0}  # features beside a loss of logits
    if name in ("ila", "yaila"):  # their first attack has a loss of its own
        return 2, {"first": {"name": "composed", "loss": "margin", "steps": 2}}
    if name == "l2t":
        return 2, {"lr": 0.0}  # its scores learn from the loss
    if name == "su":
        return 2, {"weight": 0.0}  # the cosine of features has another scale
    if name == "ftm":
        return 2, {"tuned": False}  # its perturbations learn by the gradient
    if name == "awt":
        return 2, {"rate": 0.0}  # its weights learn from the loss
    if name == "decowa":
        return 2, {"rho": 0.01 / factor}  # a step along a gradient as long as it is
    return {
        "AdaEA": (2, {"agm": False}),  # its weights compare cross-entropies
        "SMER": (2, {"lr": 0.0}),  # its scalars learn from cross-entropy
        "Reweighted": (2, {"temperature": factor}),  # losses over T
        "EnsProbs": (1, {}),  # probabilities know the scale
    }.get(fusion, (2, {}))


@names
@pytest.mark.parametrize(
    ("factor", "dtype"),
    [(1e-3, torch.float64), (1e3, torch.float64), (2.0**-100, torch.float32), (2.0**100, torch.float32)],
)
def test_sizes_of_gradients_do_not_matter(
    name: str, factor: float, dtype: torch.dtype, net_for: Any, images: Any, labelled: Any, small: Any
) -> None:
    """Margins of logits times a factor: the same images, for gradients of 1e-30 and 1e30 in float32, too."""
    count, options = deaf_to_scale(name, factor)
    models = [net_for(name)(seed).to(dtype) for seed in range(count)]
    x = images(0).to(dtype)
    y, target = labelled(models, x)
    y, target = among(y) if name == "aa" else (y, target)
    target = None if attack_info(name).untargeted else target
    common = {"norm": "l2", "eps": 0.8, "loss": "margin"}
    scaled = [_scaled(name, model, factor) for model in models]
    found = override(small(name, **common, **options), steps=2)(scaled, x, y, target)
    wanted = override(small(name, **common, **deaf_to_scale(name, 1.0)[1]), steps=2)(models, x, y, target)
    assert length(wanted - x).min() > 0.05
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-5)
