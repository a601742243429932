"""DANAA: double adversarial neuron attribution attack."""

from __future__ import annotations

from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.features.guided import Guided, Score, Total, support
from advens.attacks.interfaces import Tapped
from advens.attacks.layers import Layer
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.uniform import EnsLoss
from advens.attacks.updates import MI
from advens.fields import Count, Positive
from advens.threat import Threat

PAPER = "Jin et al., 2023 (DANAA)"


@part("feature", "danaa", targeted=False, paper=PAPER, year=2023)
class DANAA(Guided):
    """NAA along a path of the image's own instead of a line: ascend ``-<A, F(x')>``.

    ``w_0 = x``, ``w_{t+1} = w_t + length sign(dp_y/dx at w_t + N(0, noise^2))``, t = 0, ..., ``copies`` -
    1, and ``A = n_2(sum_t dp_y/dF)`` at the same noisy points; a point takes one pass. Noise is drawn
    once a run for each sample. The features at the end of the path are the baseline of the attributions,
    a constant here, where negative ones count as much as positive ones, and are not computed. The
    published path *raises* the label's probability although it is called adversarial.

    Args:
        layer: depth of the layer, 0.5 for the end of the second of four stages, or the name of a module.
        copies: points of the path.
        length: of a step of the path, on images in [0, 1].
        noise: standard deviation.
        lower: the path lowers the label's probability.
        score: of the label, ``probability`` or ``logit``.
    """

    layer: Layer = 0.5
    copies: Count = 30
    length: Positive = 0.0025
    noise: Positive = 0.25
    lower: bool = False
    score: Score = "probability"

    def guidance(self, surrogate: Tapped) -> Tensor:
        w, total = surrogate.job.x, Total()
        step = -self.length if self.lower else self.length
        for t in range(self.copies):
            noisy = (w + surrogate.job.draws.normal(w, self.noise, "danaa", t)).requires_grad_()
            seen = surrogate.run(noisy)
            value, factor = support(seen.logits, surrogate.job.y, self.score)
            along, g = surrogate.gradient(value, [noisy, *seen.features])
            total.add(g, factor)
            w = w + step * along.sign()
        return total.value


@recipe("danaa", symbol="DANAA", family="feature", targeted=False, paper=PAPER, year=2023)
def DoubleAdversarial() -> ComposedAttack:
    """Momentum on attributions along a path of noisy points; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), fusion=EnsLoss(), update=MI(), feature=DANAA())
