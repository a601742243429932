"""PNA: no gradient flows through attention maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.surrogates.changes.blocks import AttentionEdits, attentions, within
from advens.attacks.transforms.patchout import PatchOut
from advens.attacks.updates import MI
from advens.threat import Threat

PAPER = "Wei et al., AAAI 2022 (PNA-PatchOut)"


@part("change", "pna", paper=PAPER, year=2022)
class PNA:
    """Pay no attention: attention maps count as constants, ``out = A.detach() v``.

    A depends on q and k and on nothing else that depends on the image, so these are detached where
    they are multiplied: the same gradient, and fused attention may stay. Logits keep their values.
    Published code multiplies the gradient by 0 in a hook on the dropout after the softmax instead,
    and leaves CaiT's first class block alone; here no map has a gradient.
    """

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        edits = AttentionEdits(scores=_detached)
        return [within(model, each, "pna", edits) for each in attentions(model, "pna")]


def _detached(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return q.detach(), k.detach()


@recipe("pna-patchout", symbol="PNAPatchOut", family="surrogate", paper=PAPER, year=2022)
def PNAPatchOut() -> ComposedAttack:
    """Momentum without attention's gradient, on random patches; eps 16/255, 10 steps.

    The paper adds 0.1 times the perturbation's l_2 norm to the loss; a loss here sees logits
    only, and this term is left out.
    """
    return ComposedAttack(
        threat=Threat("linf", "16/255"), update=MI(), changes=(PNA(),), transforms=(PatchOut(),)
    )
