"""DVERGE: sub-models that must not share the features that fool them (Yang et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.classifier import Classifier
from advens.defenses.adversaries import ascend, standing
from advens.defenses.ensembles import Ensemble
from advens.defenses.losses import cross_entropy
from advens.defenses.ranges import Count, NonNegative, Positive, Several
from advens.defenses.registry import defense
from advens.defenses.training import Batch, Phase, Team, Training

LOGITS = ""


@defense("dverge", family="diversity", paper="Yang et al., NeurIPS 2020 (DVERGE)", year=2020)
class DVERGE:
    """Each member learns the true class of images that feel to the *others* like another one.

    First all learn alone. Then, in every update, member i distils a non-robust feature: an image near the
    source x_s whose features in one layer of i are those of a target x_t. The others learn that it is
    still what x_s is. The layer is drawn for the epoch. There is no loss on clean images, as published.

    Layers are the outputs of convolutions and linear maps, which lie before the nonlinearity, and the
    logits. The published code makes the distilled images in train mode: batch-norm then uses the
    batch's statistics, and its running ones drift to those of distilled images. ``train_mode=False``
    keeps them clean.

    Args:
        eps, step_size, steps: of the distillation, momentum-signed steps around the source.
        train_mode: whether members are in train mode while images are distilled.
        adversarial: weight of adversarial training of each member beside it; 0 is none.
        adversarial_eps, adversarial_step_size: of its PGD, as many steps as the distillation.
    """

    members: Several = 3
    eps: Positive = 0.07
    step_size: Positive = 0.007
    steps: Count = 10
    train_mode: bool = True
    adversarial: NonNegative = 0.0
    adversarial_eps: Positive = 8 / 255
    adversarial_step_size: Positive = 2 / 255
    training: Training = Training()

    def phases(self) -> list[Phase]:
        """Alone, then against each other."""
        everyone = range(self.members)
        return [
            Phase("alone", everyone, lambda team, batch: cross_entropy(team.members, batch.x, batch.y)),
            Phase("diversify", everyone, self.loss),
        ]

    def loss(self, team: Team, batch: Batch) -> Tensor:
        """``sum_i sum_{j != i} CE(f_i(x'_j), y_s)``."""
        names = layers(team.members[0])
        layer = names[batch.epoch_draws.integers(len(names), 1, "layer")[0]]
        x_t, _ = batch.other()
        felt = [self.distil(member, layer, batch.x, x_t) for member in team.members]
        losses = []
        for i, member in enumerate(team.members):
            for j, x in enumerate(felt):
                if j != i:
                    losses.append(F.cross_entropy(member(x), batch.y))
            if self.adversarial:
                losses.append(self.adversarial * F.cross_entropy(member(self.pgd(i, member, batch)), batch.y))
        return torch.stack(losses).sum()

    def distil(self, member: Classifier, layer: str, x_s: Tensor, x_t: Tensor) -> Tensor:
        """An image near ``x_s`` (N, C, H, W) whose features in ``member`` are those of ``x_t``."""
        with standing([member], train_mode=self.train_mode):
            with torch.no_grad():
                wanted = features(member, x_t, layer)
            return ascend(
                lambda z: -(features(member, z, layer) - wanted).flatten(1).square().sum(1),
                x_s, x_s, eps=self.eps, steps=self.steps, step_size=self.step_size, momentum=1.0,
            )  # fmt: skip

    def pgd(self, i: int, member: Classifier, batch: Batch) -> Tensor:
        """The member's own adversarial images."""
        eps = self.adversarial_eps
        with standing([member]):
            return ascend(
                lambda z: F.cross_entropy(member(z), batch.y, reduction="none"), batch.x,
                batch.x + batch.draws.uniform(batch.x, -eps, eps, "pgd", i), eps=eps, steps=self.steps,
                step_size=self.adversarial_step_size,
            )  # fmt: skip

    def finish(self, team: Team) -> Ensemble:
        """The mean of their probabilities."""
        return Ensemble(team.members)


def layers(model: nn.Module) -> list[str]:
    """Names of the layers features are taken from; ``""`` is the logits."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    return [*names[:-1], LOGITS]  # the last is the head


def features(model: nn.Module, x: Tensor, layer: str) -> Tensor:
    """What a layer gives for ``x``, (N, ...)."""
    if layer == LOGITS:
        out: Tensor = model(x)
        return out
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _, args, given: seen.append(given))
    try:
        model(x)
    finally:
        hook.remove()
    return seen[0]


@torch.no_grad()
def diversity(members: Sequence[Classifier], felt: Sequence[Tensor], y_t: Tensor) -> Tensor:
    """``d(f_i, f_j)``, (K, K): how little j's distilled images look like their target to i, and i's to j.

    Args:
        felt: each member's distilled images (N, C, H, W).
        y_t: labels of the targets (N,).
    """
    k = len(members)
    seen = torch.stack([
        torch.stack([F.cross_entropy(f(x), y_t) for x in felt]) for f in members
    ])  # fmt: skip
    return ((seen + seen.T) / 2).fill_diagonal_(0) if k else seen
