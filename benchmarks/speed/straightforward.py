"""Ensemble attacks as one writes them down from the papers: what `advens.attacks.fusions` is timed against.

Untargeted, l_inf, cross-entropy, steps of eps/T, outer momentum 1, the papers' parameters. The images come
out as ours do; the passes and the memory do not: every forward pass builds a graph, parameters require
gradients as they do after loading, SVRE takes a surrogate's gradient at the outer point again in every
inner step, AdaEA tries images one surrogate at a time and loops over pairs, SMER's scalars are learned by
SGD with a backward pass through all networks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.seeding import Draws


@dataclass
class Plain:
    """The surrogates, the images and what a step knows.

    Args:
        models: in eval mode, parameters not frozen; see `unfrozen`.
        x: clean images in [0, 1], (N, C, H, W).
        y: labels (N,).
        eps: the radius of the ball.
        alpha: the step size.
        draws: the randomness ours would have, so that both take the same turns.
        kept: what a method carries from step to step.
    """

    models: Sequence[nn.Module]
    x: Tensor
    y: Tensor
    eps: float
    alpha: float
    draws: Draws
    kept: dict[str, Tensor] = field(default_factory=dict)

    def loss(self, logits: Tensor) -> Tensor:
        """Cross-entropy (N,)."""
        return F.cross_entropy(logits, self.y, reduction="none")

    def clip(self, at: Tensor) -> Tensor:
        """Into the ball and [0, 1]."""
        return torch.min(torch.max(at, self.x - self.eps), self.x + self.eps).clamp(0, 1)

    def logits(self, at: Tensor) -> list[Tensor]:
        """Of every surrogate."""
        return [model(at) for model in self.models]

    def fused(self, at: Tensor) -> Tensor:
        """Gradient of the loss of the mean logits."""
        at = at.clone().detach().requires_grad_()
        return slope(self.loss(torch.stack(self.logits(at)).mean(0)), at)

    def own(self, at: Tensor, k: int) -> Tensor:
        """Gradient of one surrogate's loss."""
        at = at.clone().detach().requires_grad_()
        return slope(self.loss(self.models[k](at)), at)


Direction = Callable[[Plain, Tensor], Tensor]


def attack(name: str, models: Sequence[nn.Module], x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """``steps`` steps of a fusion under momentum."""
    plain = Plain(models, x, y, eps, eps / steps, Draws(0, len(x)))
    at, m = x.clone(), torch.zeros_like(x)
    for step in range(steps):
        plain.draws = plain.draws.at(step)
        m = m + mean_one(DIRECTIONS[name](plain, at))
        at = plain.clip(at + plain.alpha * m.sign())
    return at.detach()


def unfrozen(models: Sequence[nn.Module]) -> list[nn.Module]:
    """Copies with parameters that require gradients."""
    return [copy.deepcopy(model).eval().requires_grad_(True) for model in models]


def ens_logits(plain: Plain, x: Tensor) -> Tensor:
    return plain.fused(x)


def ens_probs(plain: Plain, x: Tensor) -> Tensor:
    at = x.clone().detach().requires_grad_()
    probs = torch.stack([F.softmax(z, 1) for z in plain.logits(at)]).mean(0)
    return slope(-probs.gather(1, plain.y[:, None]).squeeze(1).log(), at)


def ens_loss(plain: Plain, x: Tensor) -> Tensor:
    at = x.clone().detach().requires_grad_()
    return slope(torch.stack([plain.loss(z) for z in plain.logits(at)]).mean(0), at)


def ens_grads(plain: Plain, x: Tensor) -> Tensor:
    at = x.clone().detach().requires_grad_()
    losses = [plain.loss(z) for z in plain.logits(at)]
    return torch.stack([unit(slope(loss, at, keep=True)) for loss in losses]).sum(0)


def svre(plain: Plain, x: Tensor, rounds: int = 4) -> Tensor:
    k = len(plain.models)
    g = plain.fused(x)
    inner, m = x.clone(), torch.zeros_like(x)
    for i in plain.draws.integers(k, rounds * k, "svre"):
        m = m + mean_one(plain.own(inner, i) - (plain.own(x, i) - g))
        inner = plain.clip(inner + plain.alpha * m.sign())
    return m


def adaea(plain: Plain, x: Tensor, eta: float = -0.3) -> Tensor:
    at = x.clone().detach().requires_grad_()
    logits = plain.logits(at)
    gradients = [slope(plain.loss(z), at, keep=True) for z in logits]
    weights = modulation(plain, at, gradients)
    g = slope(plain.loss((torch.stack(logits) * weights[:, :, None]).sum(0)), at)
    pairs = [F.cosine_similarity(a, b, dim=1, eps=1e-30) for a, b in combinations(gradients, 2)]
    return g * (torch.stack(pairs).mean(0) >= eta)[:, None]


def modulation(plain: Plain, at: Tensor, gradients: list[Tensor], beta: float = 10.0) -> Tensor:
    """AdaEA's weights (K, N), from losses (J_j on the trial image of i) that keep their graphs."""
    k = len(gradients)
    trials = [plain.clip(at + plain.alpha * g.sign()) for g in gradients]
    losses = [[plain.loss(model(trial)) + 1e-6 for model in plain.models] for trial in trials]
    scores = []
    for i in range(k):
        ratios = [losses[i][j] / losses[j][j] for j in range(k) if j != i]
        scores.append(beta / (k - 1) * torch.stack(ratios).sum(0))
    return F.softmax(torch.stack(scores), 0).detach()


def sam(plain: Plain, x: Tensor, r: float = 1 / 2) -> Tensor:
    return plain.fused(x - r * plain.alpha * plain.fused(x).sign())


def cse(plain: Plain, x: Tensor) -> Tensor:
    return walk(plain, x) - x


def cwa(plain: Plain, x: Tensor, r: float = 1 / 15) -> Tensor:
    return walk(plain, plain.clip(x - r * plain.eps * plain.fused(x).sign())) - x


def walk(plain: Plain, at: Tensor, beta: float = 50.0) -> Tensor:
    """CSE's inner steps; beta is the paper's at its size and eps."""
    size = beta / math.sqrt(3 * 224 * 224) / (16 / 255) * plain.eps * math.sqrt(at[0].numel())
    n = plain.kept.get("n", torch.zeros_like(at))
    for k in range(len(plain.models)):
        n = n + unit(plain.own(at, k))
        at = plain.clip(at + size * n)
    plain.kept["n"] = n
    return at


def smer(plain: Plain, x: Tensor, rounds: int = 4) -> Tensor:
    k = len(plain.models)
    v = plain.kept.get("v", x.new_ones(len(x), k)).clone().requires_grad_()
    learner = torch.optim.SGD([v], lr=0.02, weight_decay=0.002)
    at, m = x.clone(), torch.zeros_like(x)
    for turn in range(rounds):
        for i in plain.draws.permutation(k, "smer", turn):
            at = at.clone().detach().requires_grad_()
            g = slope(plain.loss(v[:, i : i + 1] * plain.models[i](at)), at)
            fused = torch.stack([v[:, j : j + 1] * z for j, z in enumerate(plain.logits(at))]).mean(0)
            learner.zero_grad()
            (-plain.loss(fused).log()).sum().backward()
            learner.step()
            m = m + mean_one(g)
            at = plain.clip(at + plain.alpha * m.sign())
    plain.kept["v"] = v.detach()
    return m


DIRECTIONS: dict[str, Direction] = {
    "ens-logits": ens_logits, "ens-probs": ens_probs, "ens-loss": ens_loss, "ens-grads": ens_grads,
    "svre": svre, "adaea": adaea, "sam": sam, "cse": cse, "cwa": cwa, "smer": smer,
}  # fmt: skip


def slope(loss: Tensor, at: Tensor, keep: bool = False) -> Tensor:
    """Gradient of the summed loss."""
    (g,) = torch.autograd.grad(loss.sum(), at, retain_graph=keep)
    return g


def mean_one(g: Tensor) -> Tensor:
    """``g / mean|g|`` per sample."""
    return g / g.abs().mean((1, 2, 3), keepdim=True)


def unit(g: Tensor) -> Tensor:
    """``g / ||g||_2`` per sample."""
    size: Tensor = g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return g / size
