"""P2FA: pixel to feature attack."""

from __future__ import annotations

from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.features.bfa import around
from advens.attacks.features.guided import descent
from advens.attacks.interfaces import Passes, Seen, Tapped
from advens.attacks.layers import Layer
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.uniform import EnsLoss
from advens.fields import Count, Positive
from advens.threat import Threat, unit_l2

PAPER = "Liu et al., ICML 2025 (P2FA)"


@part("feature", "p2fa", targeted=False, paper=PAPER, year=2025)
class P2FA:
    """BFA's guidance, renewed at the iterate and accumulated: ascend ``-||F(x') - F*||^2``.

    Every ``inner`` steps ``G <- G + A(x')`` with BFA's ``A`` at the iterate, and ``F* = F(x') - strength
    n_2(G)``; the quadratic is taken up to a factor and a constant. At the published strength it is
    ``-<n_2(G), F(x')>`` in effect. Published code moves images that it takes for normalised ones, which
    makes its points about four times as far away, and computes an inner momentum that it does not use.
    Nothing is drawn.

    Args:
        layer: depth of the layer, 0.5 for the end of the second of four stages, or the name of a module.
        inner: steps on one guidance.
        copies: points around the iterate.
        eta: l_2 distance of the points at 3x224x224; at other sizes as long per pixel.
        strength: distance of F* from the features.
    """

    layer: Layer = 0.5
    inner: Count = 10
    copies: Count = 30
    eta: Positive = 28.0
    strength: Positive = 1e5

    @property
    def layers(self) -> tuple[float | str, ...]:
        return (self.layer,)

    def prepare(self, surrogate: Tapped, x_adv: Tensor) -> None:
        memory = surrogate.memory
        if "G" in memory and surrogate.context.draws.step % self.inner:
            return
        found, memory["F0"] = around(surrogate, x_adv, self.copies, self.eta)
        memory["G"] = memory["G"] + found if "G" in memory else found
        memory["A"] = unit_l2(memory["G"])

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        renewed = surrogates * len({*steps[:1], *(step for step in steps if step % self.inner == 0)})
        return Passes(renewed * (self.copies + 1), 2 * renewed * self.copies)

    def loss(self, seen: Seen, surrogate: Tapped) -> Tensor:
        before: Tensor = surrogate.memory["F0"]
        moved = (seen.features[0] - before).square().flatten(1).sum(1)
        return descent(seen, surrogate) - moved / (2 * self.strength)


@recipe("p2fa", symbol="P2FA", family="feature", targeted=False, paper=PAPER, year=2025)
def PixelToFeature() -> ComposedAttack:
    """Signs on accumulated guidance, renewed every ten steps; eps 16/255, 100 steps of eps/10."""
    return ComposedAttack(
        threat=Threat("linf", "16/255"), steps=100, step_size=StepSize("eps/10"), fusion=EnsLoss(),
        feature=P2FA(),
    )  # fmt: skip
