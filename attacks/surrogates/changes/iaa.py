"""IAA: smooth activations and weaker residual branches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pydantic import field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks.attack import ComposedAttack
from advens.attacks.hooks import Swap
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.starts import Uniform
from advens.attacks.steps import StepSize
from advens.attacks.surrogates.changes.bpa import relu_modules
from advens.attacks.surrogates.changes.sgm import Block, called, residual_blocks
from advens.errors import InputError
from advens.fields import Positive
from advens.threat import Threat

PAPER = "Zhu et al., ICLR 2022 (IAA)"


@part("change", "iaa", paper=PAPER, year=2022)
class IAA:
    """Softplus instead of ReLU, and residual branches times a factor of their stage; logits change.

    ``log(1 + exp(beta v)) / beta`` for ReLU modules, and ``z + lambda_s f(z)`` in the blocks of stage s. A
    network with another number of stages than there are factors has its blocks parted by depth.

    The numbers were tuned for every network. For ResNet-152 the paper has beta = 32 and
    (0.89, 0.88, 0.70, 0.20), for DenseNet beta = 35 and (0.8, 0.8, 0.8, 0.44). Accuracy on clean images
    falls, the more so in other networks than the paper's.

    Args:
        beta: how sharp softplus is.
        branches: lambda of every stage; the defaults are those of ResNet-18 to ResNet-50.
    """

    beta: Positive = 20.0
    branches: tuple[float, ...] = (0.98, 0.87, 0.73, 0.19)

    @field_validator("branches")
    @classmethod
    def _some(cls, branches: tuple[float, ...]) -> tuple[float, ...]:
        if not branches or min(branches) < 0:
            raise ValueError("a factor of at least 0 for every stage")
        return branches

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        blocks = [block for block in residual_blocks(model) if block.sums]
        if not blocks:
            raise InputError(f"'iaa' finds no residual branch in {called(model)}")
        handles: list[Handle] = []
        for module in relu_modules(model, "iaa"):
            handles.append(Swap(module, "forward", partial(F.softplus, beta=self.beta)))
        for block, factor in zip(blocks, self._factors(model, blocks), strict=True):
            handles += block.at_exits(partial(_weaker, factor))
        return handles

    def _factors(self, model: nn.Module, blocks: Sequence[Block]) -> list[float]:
        names = {module: name for name, module in model.named_modules()}
        stages = [names[block.module].rpartition(".")[0] for block in blocks]
        known = list(dict.fromkeys(stages))
        count = len(self.branches)
        if len(known) == count:
            return [self.branches[known.index(stage)] for stage in stages]
        return [self.branches[k * count // len(blocks)] for k in range(len(blocks))]


def _weaker(factor: float, z: Tensor, value: Tensor, i: int) -> Tensor:
    return value * factor


@recipe("iaa", symbol="IAA", family="surrogate", paper=PAPER, year=2022)
def Intrinsic() -> ComposedAttack:
    """Iterated signs of a smoother network's gradients from a random start; eps 16/255, 10 steps of eps/8."""
    return ComposedAttack(
        threat=Threat("linf", "16/255"), start=Uniform(), step_size=StepSize("eps/8"), changes=(IAA(),)
    )
