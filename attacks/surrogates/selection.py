"""Which models to take as surrogates: a submodular score, greedily, after OSBORN.

OSBORN (ICCV 2023) picks models to *fine-tune*: it adds how far data and labels are from a model's own
and how much models disagree. Surrogates need two other things, and both can be seen on a few calibration
images without any target. The score of a set S out of the candidates V is a graph cut,

    f(S) = sum_{j in S} a_j mean_{i in V, i != j} s_ij  -  redundancy * mean_{i in V} over pairs in S of s_ij,

with the agreement a_j in [0, 1] of model j with the labels and s_ij >= 0 the mean cosine between the input
gradients of i and j: a surrogate is worth how well its gradient stands for the others', and less so
beside one that stands for the same. The pairwise term makes f submodular; it is not monotone, so the
greedy set has no 1 - 1/e guarantee (nor has OSBORN's, whose score is a sum of penalties).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advens.attacks.estimators import Plain
from advens.attacks.expectation import expectations
from advens.attacks.interfaces import Job
from advens.attacks.losses import CrossEntropy
from advens.attacks.oracle import GradientOracle
from advens.classifier import borrowed
from advens.errors import InputError
from advens.seeding import Draws
from advens.threat import Threat, unit_l2


@dataclass(frozen=True)
class Candidates:
    """What is known of some models on calibration data.

    Args:
        agreement: (K,) in [0, 1]: 1 - H(prediction | label) / log(classes), H of the mean predicted
            probabilities of each class's images.
        similarity: (K, K) in [0, 1], mean positive cosine of input gradients, 1 on the diagonal.
    """

    agreement: Tensor
    similarity: Tensor

    def score(self, members: Sequence[int], redundancy: float = 1.0) -> float:
        """f of a set of candidates; 0 for the empty one."""
        k = len(self.agreement)
        others = (self.similarity.sum(0) - self.similarity.diagonal()) / max(1, k - 1)
        worth = float((self.agreement * others)[list(members)].sum())
        inside = self.similarity[list(members)][:, list(members)]
        pairs = float(inside.triu(1).sum())
        return worth - redundancy * pairs / max(1, k - 1)

    def greedy(self, count: int, redundancy: float = 1.0) -> list[tuple[int, float]]:
        """``count`` candidates in the order they are taken, each with what it adds to the score."""
        if not 1 <= count <= len(self.agreement):
            raise InputError(f"cannot pick {count} of {len(self.agreement)} models")
        taken: list[tuple[int, float]] = []
        while len(taken) < count:
            have = [k for k, _ in taken]
            before = self.score(have, redundancy)
            left = [k for k in range(len(self.agreement)) if k not in have]
            gains = [self.score([*have, k], redundancy) - before for k in left]
            best = max(range(len(left)), key=lambda i: gains[i])
            taken.append((left[best], gains[best]))
        return taken


def examine(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    batch: int = 64,
    on_model: Callable[[int], None] | None = None,
) -> Candidates:
    """Agreement and similarity of models on calibration images; one gradient of each an image.

    Args:
        models: they come back as they were.
        x: (N, C, H, W) in [0, 1].
        y: labels (N,).
        batch: images at once.
        on_model: called with the number of each model that is done.
    """
    if not len(x):
        raise InputError("no calibration images")
    agreement, units = [], []
    with borrowed(models):
        for k, model in enumerate(expectations(list(models))):
            found = [_look(model, a, b) for a, b in zip(x.split(batch), y.split(batch), strict=True)]
            gradients, probabilities = (torch.cat(parts) for parts in zip(*found, strict=True))
            units.append(gradients.half())  # all are held at once
            agreement.append(_agreement(probabilities, y))
            if on_model is not None:
                on_model(k)
    k = len(models)
    similarity = torch.eye(k, dtype=torch.float64)
    for i in range(k):
        for j in range(i):
            cosine = (units[i].float() * units[j].float()).sum(1).double()
            similarity[i, j] = similarity[j, i] = cosine.mean().clamp_min(0)
    return Candidates(torch.tensor(agreement, dtype=torch.float64), similarity)


def _look(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Unit gradients (N, CHW) of the cross-entropy and probabilities (N, classes), on the CPU."""
    oracle = GradientOracle(
        Job([model], x, y, None, Draws(0, len(x)), x), Threat(), CrossEntropy(), Plain()
    )
    leaf = x.detach().requires_grad_()
    logits = oracle.forward(leaf, 0)
    g = oracle.backward(oracle.fused([logits], None, "logits"), leaf, 1)
    oracle.check()
    return unit_l2(g).flatten(1).cpu(), logits.detach().softmax(1).cpu()


def _agreement(probabilities: Tensor, y: Tensor) -> float:
    """1 - H(prediction | label) / log(classes)."""
    entropy = torch.zeros((), dtype=torch.float64)
    for label in y.unique():
        mean = probabilities[y.cpu() == label.cpu()].double().mean(0)
        share = float((y == label).double().mean())
        entropy += share * torch.special.entr(mean).sum()
    return float(1 - entropy / torch.tensor(float(probabilities.shape[1])).log())
