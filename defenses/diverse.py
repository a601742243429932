"""Members that learn together, with a term in the loss that makes them different: ADP, GAL, TRS, FoRDE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked
from torch import Tensor, nn
from torch.nn import functional as F

from advens.ascent import ascend
from advens.classifier import borrowed
from advens.defenses.losses import cross_entropy, input_gradients, pair_cosines
from advens.defenses.phases import Batch, Phase, Team, Training
from advens.defenses.plain import Everyone, own_adversarial
from advens.defenses.registry import defense
from advens.errors import InputError
from advens.fields import Count, NonNegative, Positive, Several, Whole

ADAM = Training(lr=1e-3, optimizer="adam")
Centre = Literal["channel", "pixel"]


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Beside(Everyone):
    """A defense whose members can be trained adversarially beside its own loss.

    Args:
        adversarial: weight of the cross-entropies of the members on their own PGD images; 0 is none.
        adversarial_eps, adversarial_step_size, adversarial_steps: of the l_inf PGD, from a uniform point.
    """

    adversarial: NonNegative = 0.0
    adversarial_eps: Positive = 8 / 255
    adversarial_step_size: Positive = 2 / 255
    adversarial_steps: Count = 10

    added: ClassVar = ("adversarial", "adversarial_eps", "adversarial_step_size", "adversarial_steps")

    def beside(self, team: Team, batch: Batch) -> Tensor:
        """The weighted sum over members of their cross-entropies on their own PGD images."""
        if not self.adversarial:
            return batch.x.new_zeros(())
        made = own_adversarial(
            team.members, batch, "adversarial", eps=self.adversarial_eps, steps=self.adversarial_steps,
            step_size=self.adversarial_step_size,
        )  # fmt: skip
        losses = [F.cross_entropy(f(x), batch.y) for f, x in zip(team.members, made, strict=True)]
        return self.adversarial * torch.stack(losses).sum()


@defense("adp", family="diversity", paper="Pang et al., ICML 2019 (ADP)", year=2019)
class ADP(Beside):
    """Cross-entropies, minus alpha times the entropy of the mean prediction and beta times a log-determinant.

    Args:
        alpha: weight of the entropy.
        beta: weight of the log-determinant of the members' non-maximal predictions.
        adversarial, adversarial_eps, adversarial_step_size, adversarial_steps: adversarial training beside
            the loss, see `Beside`.
    """

    members: Several = 3
    alpha: float = 2.0
    beta: float = 0.5
    training: Training = ADAM

    def loss(self, team: Team, batch: Batch) -> Tensor:
        logits = torch.stack([member(batch.x) for member in team.members])
        own = torch.stack([F.cross_entropy(z, batch.y) for z in logits]).sum()
        entropy, volume = adp_terms(logits.softmax(-1), batch.y)
        return own - self.alpha * entropy.mean() - self.beta * volume.mean() + self.beside(team, batch)


def adp_terms(p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of the mean prediction and log-determinant, (N,) each, of predictions (K, N, classes)."""
    mean = p.mean(0)
    entropy = -(mean * (mean + 1e-20).log()).sum(1)
    others = torch.ones_like(mean, dtype=torch.bool).scatter(1, y[:, None], False)
    columns = torch.stack([q[others].view(len(y), -1) for q in p], 1)  # (N, K, classes - 1)
    unit = F.normalize(columns, dim=-1)
    gram = unit @ unit.transpose(1, 2)
    return entropy, torch.logdet(gram + 1e-6 * torch.eye(len(p), dtype=p.dtype, device=p.device))


@defense("gal", family="diversity", paper="Kariyappa & Qureshi, 2019 (GAL)", year=2019)
class GAL(Beside):
    """Mean cross-entropy plus the log-sum-exp of the pairwise cosines of input gradients.

    The paper trains networks with leaky ReLUs, whose gradients do not vanish; architectures are kept as
    they are here.

    Args:
        weight: of the gradient term.
        noise: standard deviation of the gaussian noise that half of the images get.
        noise_by: whether the noise falls on each ``image`` with probability 1/2, as in DVERGE's code of
            GAL, or on a whole ``batch``.
        adversarial, adversarial_eps, adversarial_step_size, adversarial_steps: adversarial training beside
            the loss, see `Beside`.
    """

    members: Several = 3
    weight: NonNegative = 0.5
    noise: NonNegative = 0.045
    noise_by: Literal["image", "batch"] = "image"
    training: Training = ADAM

    def loss(self, team: Team, batch: Batch) -> Tensor:
        x = self.noisy(batch)
        own = cross_entropy(team.members, x, batch.y) / len(team.members)
        cosines = pair_cosines(input_gradients(team.members, x, batch.y))
        return own + self.weight * cosines.logsumexp(0).mean() + self.beside(team, batch)

    def noisy(self, batch: Batch) -> Tensor:
        """The images of the batch, half of them with noise; as published, it may leave [0, 1]."""
        if not self.noise:
            return batch.x
        noise = batch.draws.normal(batch.x, self.noise, "noise")
        if self.noise_by == "image":
            chosen = batch.draws.uniform(batch.x[:, :1, :1, :1], 0, 1, "noisy") < 0.5
            return batch.x + chosen * noise
        return batch.x + noise if batch.draws.number(0, 1, "noisy") < 0.5 else batch.x


@defense("trs", family="diversity", paper="Yang et al., NeurIPS 2021 (TRS)", year=2021)
class TRS(Beside):
    """Cross-entropies, plus pairwise cosines of the members' input gradients and the size of these.

    ``scale (cosine |cos| + smooth ||g||²)``. The size is that of gradients on images half of which were
    moved to where it is large, in a ball that grows over the training. The published code takes gradients
    of the batch's mean cross-entropy: ``||g||²`` falls with the square of the batch size. It moves images
    with members in train mode; here they are in eval mode meanwhile.

    Args:
        scale: of both terms.
        cosine: weight of the mean absolute cosine.
        smooth: weight of the mean squared length, twice the mean over members.
        gradient_of: the loss whose gradient is measured: the batch's ``mean``, as published, or each
            image's ``own``, which is a penalty stronger by the square of the batch size and the same for
            all batch sizes.
        eps_start, eps: the ball's radius at the beginning and at the end.
        steps: of the ascent, of a third of the radius each.
        adversarial, adversarial_eps, adversarial_step_size, adversarial_steps: adversarial training beside
            the loss, see `Beside`.
    """

    members: Several = 3
    scale: NonNegative = 5.0
    cosine: NonNegative = 2.0
    smooth: NonNegative = 2.0
    gradient_of: Literal["mean", "own"] = "mean"
    eps_start: NonNegative = 0.1
    eps: NonNegative = 0.2
    steps: Whole = 6
    training: Training = ADAM

    def loss(self, team: Team, batch: Batch) -> Tensor:
        own = cross_entropy(team.members, batch.x, batch.y)
        gradients = input_gradients(team.members, batch.x, batch.y)
        size = lengths(team.members, self.rough(team.members, batch), batch.y).mean()
        if self.gradient_of == "mean":
            size = size / len(batch.x) ** 2
        terms = self.cosine * pair_cosines(gradients).abs().mean() + self.smooth * size
        return own + self.scale * terms + self.beside(team, batch)

    def rough(self, members: Sequence[nn.Module], batch: Batch) -> Tensor:
        """The batch with the images of its second half moved to where gradients are large."""
        half = len(batch.x) // 2
        x, y = batch.x[half:], batch.y[half:]
        eps = self.eps_start + (self.eps - self.eps_start) * batch.done
        noise = batch.draws.uniform(batch.x, -eps, eps, "start")[half:]
        with borrowed(members):
            moved = ascend(
                lambda z: lengths(members, z, y), x, x + noise, eps=eps, steps=self.steps, step_size=eps / 3
            )
        return torch.cat([batch.x[:half], moved])


def lengths(members: Sequence[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """Twice the mean over members of the squared length of each image's own input gradient, (N,)."""
    gradients = input_gradients(members, x, y)
    return 2 * torch.stack([g.square().sum(1) for g in gradients]).mean(0)


@defense("forde", family="diversity", paper="Trinh et al., ICLR 2024 (FoRDE)", year=2024)
class FoRDE(Everyone):
    """Cross-entropies and a repulsion of the members' normalised input gradients.

    A member is pushed from the others by an RBF kernel, its bandwidth the median distance, between
    gradients of the true class's logit. The paper's kernel stands in the principal components of the
    training images, an inverse squared lengthscale being the variance along one: members are to differ
    where images do. Here images lie in [0, 1]; the published code also divides each channel by its
    standard deviation, which changes nothing where those are equal.

    Args:
        weight: of the repulsion; the paper's is one over the batch size.
        pca: a data source, that of the training, whose principal components are taken; they fill a matrix
            of (CHW, CHW). Without one all lengthscales are 1.
        centre: what is subtracted before: the mean of each ``channel``, as in the published code, so that
            the mean image counts as a direction, or of each ``pixel``, as in a covariance.
    """

    members: Several = 3
    weight: float | None = None
    pca: str | None = None
    centre: Centre = "channel"
    training: Training = Training(epochs=300, weight_decay=5e-4, optimizer="nesterov", schedule="linear")

    def phases(self) -> list[Phase]:
        """One, in which all learn; the components are found at its first update."""
        from advens.datasets import find_data

        data = None if self.pca is None else find_data(self.pca)
        found: list[Tensor] = []

        def loss(team: Team, batch: Batch) -> Tensor:
            if data is not None and not found:
                images = next(data.batches([slice(0, len(data))])).pixels.float() / 255
                found.append(principal_axes(images, self.centre).to(batch.x))
            return self.loss(team, batch, *found)

        return [Phase("together", range(self.members), loss)]

    def loss(self, team: Team, batch: Batch, axes: Tensor | None = None) -> Tensor:
        """The loss in the kernel of ``axes``, see `principal_axes`; the identity without them."""
        wide = batch.x[0].numel()
        if axes is not None and len(axes) != wide:
            raise InputError(f"pca: images of {len(axes)} numbers, and {wide} are learned from")
        own = cross_entropy(team.members, batch.x, batch.y)
        units = []
        for member in team.members:
            leaf = batch.x.detach().requires_grad_()
            picked = member(leaf).gather(1, batch.y[:, None]).sum()
            (g,) = torch.autograd.grad(picked, leaf, create_graph=True)
            unit = F.normalize(g.flatten(1), dim=1, eps=1e-12)
            units.append(unit if axes is None else unit @ axes)
        weight = 1 / len(batch.x) if self.weight is None else self.weight
        return own + weight * repulsion(torch.stack(units))


def principal_axes(images: Tensor, centre: Centre = "channel") -> Tensor:
    """Principal components of images (N, C, H, W), each times the deviation along it, (CHW, CHW) float64.

    ``u @ axes`` are the coordinates of u along the components over the lengthscales: a distance there is
    ``u^T cov u``, with second moments around the mean of each channel or pixel.
    """
    mean = images.mean((0, 2, 3) if centre == "channel" else 0, keepdim=True, dtype=torch.float64)
    wide = images[0].numel()
    scatter = torch.zeros(wide, wide, dtype=torch.float64, device=images.device)
    for some in images.split(4096):
        apart = (some.double() - mean).flatten(1)
        scatter.addmm_(apart.T, apart)
    variances, components = torch.linalg.eigh(scatter / max(1, len(images) - 1))
    axes: Tensor = components * variances.clamp_min(0).sqrt()
    return axes


def repulsion(units: Tensor) -> Tensor:
    """``sum_i log mean_b sum_j exp(-||s_i - s_j||² / h_j)`` of gradients (K, N, D); s_j is detached."""
    k = len(units)
    apart = (units[:, None] - units.detach()[None]).square().sum(-1)  # (i, j, N)
    width = apart.detach().quantile(0.5, 0, keepdim=True) / math.log(k) + 1e-12  # of two, the mean
    return (-apart / width).exp().sum(1).mean(1).log().sum()
