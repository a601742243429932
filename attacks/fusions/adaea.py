"""AdaEA: adaptive gradient modulation (AGM) and the disparity-reduced filter (DRF)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import Oracle, Passes
from advens.attacks.losses import cross_entropy
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.sharing import shared
from advens.attacks.starts import Gaussian
from advens.attacks.steps import StepSize
from advens.attacks.updates import MI, Sign, Update
from advens.threat import Threat

PAPER = "Chen et al., ICCV 2023 (AdaEA)"
GUARD = 1e-6


@part("fusion", "adaea", paper=PAPER, year=2023, couples="option")
class AdaEA:
    """Surrogates whose trial steps raise the others' losses weigh more; pixels they disagree on are left out.

    1. ``g_k``, the gradient of each surrogate's own loss.
    2. AGM: trial steps ``x_k = Π(x' + alpha sign g_k)``;
       ``w = softmax_k(beta / (K-1) Σ_{i≠k} J_i(x_k) / J_i(x_i))`` per sample. J is cross-entropy; with
       targets the ratio is turned over, since there a good step lowers it (the paper is untargeted).
    3. DRF: pixels whose mean pairwise cosine of the g_k over channels is below eta are left alone.
    4. The gradient of ``J(Σ_k w_k z_k)``, those pixels zero.

    Trial steps see no input transform, as published, and build no graph. Weights and filter look at raw
    gradients; an attack's gradient filter (TI) acts on the result, as in the published AdaEA-TI.
    The first published code finds new weights at every step, as here; its later version keeps those of the
    first step. The guard of 1e-6 in the ratios is ours.

    Args:
        beta: sharpness of the weights.
        eta: threshold of the filter. A mean pairwise cosine is at least -1/(K-1), so -0.3 filters
            nothing from K = 5 on.
        agm, drf: switch a half off, for ablations.
        mean_ratio: divide by K-1 as the paper does; the published code does not.
        published_filter: the published code's arithmetic, which never writes the last surrogate's row.
        batch_coupled: losses averaged over the batch before the ratio, as published: one weight for all.
    """

    beta: float = 10.0
    eta: float = -0.3
    agm: bool = True
    drf: bool = True
    mean_ratio: bool = True
    published_filter: bool = False
    batch_coupled: bool = False

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        here = shared(oracle, x)
        everyone = list(range(oracle.k))
        gradients = [here.gradient([k]) for k in everyone]
        weights = self.weights(oracle, x, gradients)
        oracle.note("weights", weights)
        g = here.gradient(everyone, weights, last=True)
        if self.drf and oracle.k > 1:
            keep = disparity(gradients, self.published_filter) >= self.eta
            oracle.note("filtered", 1 - keep.to(g.dtype).flatten(1).mean(1))
            g = g * keep
        return oracle.filtered(g)

    def weights(self, oracle: Oracle, x: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """AGM's weights (N, K), from the surrogates' K gradients (N, C, H, W)."""
        k, n = oracle.k, len(x)
        if not self.agm:
            return x.new_full((n, k), 1 / k)
        alpha = oracle.context.step_size
        candidates = torch.cat([oracle.context.step(x, alpha, g) for g in gradients])
        wanted = oracle.job.y if oracle.job.target is None else oracle.job.target
        labels = wanted.repeat(k)
        losses = torch.stack([
            cross_entropy(oracle.logits(candidates, i), labels).view(k, n)
            for i in range(k)
        ])  # fmt: skip  # (i, k, n): loss of surrogate i on the trial of k
        if self.batch_coupled:
            losses = losses.mean(2, keepdim=True).expand_as(losses)
        own = losses.diagonal().T[:, None]  # (i, 1, n): J_i(x_i)
        ratio = (losses + GUARD) / (own + GUARD)
        if oracle.job.target is not None:
            ratio = 1 / ratio
        others = ratio.sum(0) - 1  # without i = k, whose ratio is 1
        scale = self.beta / (max(1, k - 1) if self.mean_ratio else 1)
        return (scale * others).softmax(0).T

    def passes(self, surrogates: int, gradients: int) -> Passes:
        forward = surrogates if gradients == 1 else 2 * surrogates * gradients
        trials = surrogates**2 if self.agm else 0
        return Passes(forward + trials, 2 * surrogates * gradients)


def disparity(gradients: Sequence[Tensor], published: bool = False) -> Tensor:
    """Mean pairwise cosine over channels, (N, 1, H, W), of K gradients (N, C, H, W).

    No pair is formed: ``Σ_{i≠j} u_i·u_j = ||Σ u||² - Σ ||u||²`` for the pixels' unit vectors u, whose
    length is 1, or 0 where the gradient is.
    """
    k = len(gradients)
    total, alive = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0][:, :1])
    before = alive
    for g in gradients:
        before = _pairs(total, alive) if published else before
        # first by the largest channel, so that squares of tiny gradients do not underflow
        u = g / g.abs().amax(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
        size = u.square().sum(1, keepdim=True).sqrt()  # torch's norm is slow along channels
        total.add_(u.div_(size.clamp_min(1)))
        alive.add_(size > 0)
    pairs = _pairs(total, alive)
    if published:  # pairs with the last surrogate are written once, in the other's row
        pairs = (pairs + before) / 2
    return pairs / (k * (k - 1))


def _pairs(total: Tensor, alive: Tensor) -> Tensor:
    return total.square().sum(1, keepdim=True) - alive


def _adaea(update: Update) -> ComposedAttack:
    return ComposedAttack(
        threat=Threat("linf", "8/255"), steps=20, step_size=StepSize("eps/4"), start=Gaussian(0.001),
        fusion=AdaEA(), update=update,
    )  # fmt: skip


@recipe("adaea", symbol="AdaEA", family="fusion", paper=PAPER, year=2023, couples="option")
def AdaEAAttack() -> ComposedAttack:
    """Adaptive weights and a disparity filter; 20 steps of eps/4 from a little noise."""
    return _adaea(Sign())


@recipe("mi-adaea", family="fusion", paper=PAPER, year=2023, couples="option")
def MIAdaEA() -> ComposedAttack:
    """AdaEA with momentum 0.9, as its code has it."""
    return _adaea(MI(mu=0.9))
