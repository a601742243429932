"""FIA: feature importance-aware attack."""

from __future__ import annotations

from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.features.guided import Guided, Score, Total, importance
from advens.attacks.interfaces import Tapped
from advens.attacks.layers import Layer
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.uniform import EnsLoss
from advens.attacks.updates import MI
from advens.fields import Count, Share
from advens.threat import Threat

PAPER = "Wang et al., ICCV 2021 (FIA)"


@part("feature", "fia", targeted=False, paper=PAPER, year=2021)
class FIA(Guided):
    """Features that matter on many masked images are suppressed: ascend ``-<A, F(x')>``.

    ``A = n_2(sum_i ds_y/dF at x * M_i)``, i = 1, ..., ``copies``: F is the feature map of a layer, s_y the
    label's logit, M_i a mask that keeps every value of every channel with probability ``keep``, n_2 division
    by the l_2 norm. Masks are drawn once a run, for each sample, and are the same for all surrogates. The
    clean image is masked and not transformed; where x' is, features and guidance are not aligned, as in the
    published combination with DI.

    A published port takes the label's probability as the score and has no momentum.

    Args:
        layer: depth of the layer, 0.5 for the end of the second of four stages, or the name of a module.
        copies: masks.
        keep: 0.7 in the paper, 0.9 for defended targets.
        score: ``logit`` or ``probability``.
    """

    layer: Layer = 0.5
    copies: Count = 30
    keep: Share = 0.7
    score: Score = "logit"

    def guidance(self, surrogate: Tapped) -> Tensor:
        x, total = surrogate.job.x, Total()
        for i in range(self.copies):
            mask = surrogate.job.draws.uniform(x, 0, 1, "fia", i) < self.keep
            total.add(*importance(surrogate, x * mask, self.score))
        return total.value


@recipe("fia", symbol="FIA", family="feature", targeted=False, paper=PAPER, year=2021)
def FeatureImportance() -> ComposedAttack:
    """Momentum on features that matter for the label; eps 16/255, 10 steps."""
    return ComposedAttack(
        threat=Threat("linf", "16/255"), fusion=EnsLoss(), update=MI(), feature=FIA()
    )
