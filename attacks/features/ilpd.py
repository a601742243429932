"""ILPD: intermediate-level perturbation decay."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import Passes, Tapped
from advens.attacks.layers import Layer
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.updates import MI
from advens.fields import NonNegative, Share
from advens.threat import Threat

PAPER = "Li et al., NeurIPS 2023 (ILPD)"


@part("feature", "ilpd", paper=PAPER, year=2023)
class ILPD:
    """Perturbations of a layer's features are shrunk towards the features of a noisy clean image.

    Where a gradient is taken, F(x') becomes ``gamma F(x') + (1 - gamma) F(x + N(0, sigma^2))``: the upper
    layers are evaluated near the clean image, and the gradient that flows back through the layer is gamma
    times as long. The loss stays that of the logits, and goes with any fusion. The clean image has new noise
    in every step, a sample's own, and is not transformed; where x' is, features are not aligned.

    Args:
        layer: depth of the layer, 0.5 for the end of the second of four stages, or the name of a module.
        gamma: what is kept of the features' perturbation.
        sigma: standard deviation of the noise, on images in [0, 1].
    """

    layer: Layer = 0.5
    gamma: Share = 0.1
    sigma: NonNegative = 0.05

    @property
    def layers(self) -> tuple[float | str, ...]:
        return (self.layer,)

    def prepare(self, surrogate: Tapped, x_adv: Tensor) -> None:
        x = surrogate.job.x
        with torch.no_grad():
            noise = surrogate.context.draws.normal(x, self.sigma, "ilpd")
            surrogate.memory["clean"] = surrogate.run(x + noise).features[0]

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        return Passes(surrogates * len(steps), 0)

    def mixed(self, features: Tensor, surrogate: Tapped) -> Tensor:
        clean: Tensor = surrogate.memory["clean"]
        times = len(features) // len(clean)
        if times > 1:
            clean = clean.repeat(times, *[1] * (clean.dim() - 1))
        return self.gamma * features + (1 - self.gamma) * clean


@recipe("ilpd", symbol="ILPD", family="feature", paper=PAPER, year=2023)
def PerturbationDecay() -> ComposedAttack:
    """Momentum on gradients near the clean image's features; eps 16/255, 100 steps of eps/16."""
    return ComposedAttack(
        threat=Threat("linf", "16/255"), update=MI(), feature=ILPD(), steps=100, step_size=StepSize("eps/16")
    )
