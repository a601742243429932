"""DVERGE: members that do not share the features that fool them (Yang et al., NeurIPS 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.ascent import ascend
from advens.classifier import borrowed
from advens.defenses.ensembles import Ensemble
from advens.defenses.phases import Batch, Phase, Team, Training
from advens.defenses.registry import defense
from advens.defenses.stacked import Members, features
from advens.fields import Count, NonNegative, Positive, Several


@defense("dverge", family="diversity", paper="Yang et al., NeurIPS 2020 (DVERGE)", year=2020)
class DVERGE:
    """Each member learns the true class of images that have the features of another image in another member.

    First every member learns alone. Then, in every update, member i distils a non-robust feature: an image
    near the source x_s whose features in one layer of member i are those of a target x_t. The other members
    learn the class of x_s for it. The layer is drawn once an epoch. There is no loss on clean images, as
    published.

    Layers are the inputs of the nonlinearities, after batch-norm and the residual sum, and the logits: for a
    ResNet-20 the 20 layers of the published code. The published code distils images in train mode: batch-norm
    then uses the statistics of the batch, and its running statistics, up to the layer, drift to those of
    distilled images. ``train_mode=False`` leaves them as they are on training images.

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
        """First every member alone, then all against each other."""
        everyone = range(self.members)
        return [Phase("alone", everyone, self.alone), Phase("diversify", everyone, self.loss)]

    def alone(self, team: Team, batch: Batch) -> Tensor:
        """``sum_i CE(f_i(x), y)``."""
        k = len(team.members)
        with team.together(batch.x, self.training.stacked) as everyone:
            return k * F.cross_entropy(everyone(repeated(batch.x, k)), batch.y.repeat(k))

    def loss(self, team: Team, batch: Batch) -> Tensor:
        """``sum_i sum_{j != i} CE(f_i(x'_j), y_s)``; in every turn each member takes another's images."""
        k, known, (x_t, _) = len(team.members), team.layers(batch.x), batch.other()
        layer = known[batch.epoch_draws.integers(len(known), 1, "layer")[0]]
        others = torch.tensor([[j for j in range(k) if j != i] for i in range(k)])  # (i, turn)
        y_s = batch.y.repeat(k)
        with team.together(batch.x, self.training.stacked) as everyone:
            made = self.distil(everyone, layer, repeated(batch.x, k), repeated(x_t, k)).unflatten(0, (k, -1))
            losses = [F.cross_entropy(everyone(made[turn].flatten(0, 1)), y_s) for turn in others.T]
            if self.adversarial:
                losses.append(self.adversarial * F.cross_entropy(everyone(self.pgd(everyone, batch)), y_s))
        return k * torch.stack(losses).sum()

    def distil(self, f: nn.Module, layer: int, x_s: Tensor, x_t: Tensor) -> Tensor:
        """An image near ``x_s`` (N, C, H, W) whose features in ``f`` are those of ``x_t``."""
        with borrowed([f], train_mode=self.train_mode):
            with torch.no_grad():
                wanted = features(f, x_t, layer)
            return ascend(
                lambda z: -(features(f, z, layer) - wanted).flatten(1).square().sum(1),
                x_s, x_s, eps=self.eps, steps=self.steps, step_size=self.step_size, momentum=1.0,
            )  # fmt: skip

    def pgd(self, everyone: Members, batch: Batch) -> Tensor:
        """Every member's own adversarial images, (K N, C, H, W)."""
        k, eps = len(everyone.members), self.adversarial_eps
        x, y = repeated(batch.x, k), batch.y.repeat(k)
        noise = torch.cat([batch.draws.uniform(batch.x, -eps, eps, "pgd", i) for i in range(k)])
        with borrowed([everyone]):
            return ascend(
                lambda z: F.cross_entropy(everyone(z), y, reduction="none"), x, x + noise, eps=eps,
                steps=self.steps, step_size=self.adversarial_step_size,
            )  # fmt: skip

    def finish(self, team: Team) -> Ensemble:
        """The ensemble that averages probabilities."""
        return Ensemble(team.members)


def repeated(x: Tensor, k: int) -> Tensor:
    """The same images for each of k members, (k N, C, H, W)."""
    return x.repeat(k, 1, 1, 1)
