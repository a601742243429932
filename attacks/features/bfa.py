"""BFA: black-box feature attack."""

from __future__ import annotations

import math

from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.features.guided import Total, descent, support
from advens.attacks.interfaces import Passes, Seen, Tapped
from advens.attacks.layers import Layer
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.uniform import EnsLoss
from advens.attacks.updates import MI
from advens.fields import Count, Positive
from advens.threat import Threat, unit_l2

PAPER = "Wang et al., Neurocomputing 2024 (BFA)"

PAPER_SIZE = 3 * 224 * 224


@part("feature", "bfa", targeted=False, paper=PAPER, year=2024)
class BFA:
    """Features that support the label around the image are suppressed: ascend ``-<A, F(x')>``.

    ``A = n_2(sum_i dz_y/dF at v_i)``, i = 1, ..., ``copies``, with ``v_0 = x`` and
    ``v_{i+1} = x + eta n_2(grad J(v_i))``: points eta away from the clean image, each along the gradient of
    the one before, where J is the attack's loss and z_y the label's logit. Points are not clipped. Nothing is
    drawn. The gradients of J and of z_y at a point share a forward pass.

    Args:
        layer: depth of the layer, 0.5 for the end of the second of four stages, or the name of a module.
        copies: points.
        eta: l_2 distance of the points at 3x224x224; at other sizes as long per pixel.
    """

    layer: Layer = 0.5
    copies: Count = 30
    eta: Positive = 28.0

    @property
    def layers(self) -> tuple[float | str, ...]:
        return (self.layer,)

    def prepare(self, surrogate: Tapped, x_adv: Tensor) -> None:
        if "A" not in surrogate.memory:
            surrogate.memory["A"], _ = around(surrogate, surrogate.job.x, self.copies, self.eta)

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        return Passes(surrogates * (self.copies + 1), 2 * surrogates * self.copies)

    def loss(self, seen: Seen, surrogate: Tapped) -> Tensor:
        return descent(seen, surrogate)


def around(surrogate: Tapped, x: Tensor, copies: int, eta: float) -> tuple[Tensor, Tensor]:
    """A at ``x``, of norm 1, and the features there."""
    length, total, v, here = eta * math.sqrt(x[0].numel() / PAPER_SIZE), Total(), x, x
    for i in range(copies + 1):
        v = v.detach().requires_grad_()
        seen = surrogate.run(v)
        if i == 0:
            here = seen.features[0].detach()
        else:
            z, factor = support(seen.logits, surrogate.job.y, "logit")
            (g,) = surrogate.gradient(z, seen.features, keep=i < copies)
            total.add(g, factor)
        if i < copies:
            (d,) = surrogate.gradient(surrogate.loss(seen.logits).ascended, [v])
            v = x + length * unit_l2(d)
    return unit_l2(total.value), here


@recipe("bfa", symbol="BFA", family="feature", targeted=False, paper=PAPER, year=2024)
def BlackBoxFeature() -> ComposedAttack:
    """Momentum on features that support the label around the image; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), fusion=EnsLoss(), update=MI(), feature=BFA())
