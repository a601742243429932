"""AA: activation attack."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import Job, Passes, Seen, Tapped
from advens.attacks.layers import Layer
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.uniform import EnsLoss
from advens.attacks.updates import MI
from advens.errors import InputError

PAPER = "Inkawhich et al., CVPR 2019 (AA)"


@part("feature", "aa", untargeted=False, couples="shard", paper=PAPER, year=2019)
class AA:
    """Features come near those of an image of the target class: descend ``||F(x') - F(x_t)||_2``.

    x_t is drawn once a run for every sample, from the clean images of the shard that carry the target as
    their label; where there is none, the attack is refused. A port takes the first image of the data with
    that label. x_t is not transformed.

    Args:
        layer: depth of the layer, 0.5 for the end of the second of four stages, or the name of a module. The
            paper chooses it for every network.
    """

    layer: Layer = 0.5

    @property
    def layers(self) -> tuple[float | str, ...]:
        return (self.layer,)

    def prepare(self, surrogate: Tapped, x_adv: Tensor) -> None:
        if "F" not in surrogate.memory:
            with torch.no_grad():
                surrogate.memory["F"] = surrogate.run(of_targets(surrogate.job)).features[0]

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        return Passes(surrogates, 0)

    def loss(self, seen: Seen, surrogate: Tapped) -> Tensor:
        away = (seen.features[0] - surrogate.memory["F"]).flatten(1)
        distance: Tensor = torch.linalg.vector_norm(away, dim=1)
        return -distance


def of_targets(job: Job) -> Tensor:
    """An image of the target class for every sample, (N, C, H, W)."""
    assert job.target is not None
    assert job.pool_y is not None
    rows: list[int] = []
    drawn = job.draws.uniform(job.x.new_zeros(len(job.x)), 0, 1, "aa")
    for target, u in zip(job.target.tolist(), drawn.tolist(), strict=True):
        having = (job.pool_y == target).nonzero().flatten().tolist()
        if not having:
            raise InputError(
                f"'aa' needs an image of every target class among those attacked together; "
                f"there is none of class {target}"
            )
        rows.append(having[min(int(u * len(having)), len(having) - 1)])
    return job.pool[rows].to(job.x.device)


@recipe("aa", symbol="AA", family="targeted", untargeted=False, couples="shard", paper=PAPER, year=2019)
def ActivationAttack() -> ComposedAttack:
    """Momentum towards the features of an image of the target class; 300 steps of eps/8."""
    return ComposedAttack(
        update=MI(), steps=300, step_size=StepSize("eps/8"), fusion=EnsLoss(), feature=AA()
    )
