"""Losses that defenses share; all give a scalar, the mean over the batch, unless said otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cross_entropy(models: Sequence[nn.Module], x: Tensor, y: Tensor) -> Tensor:
    """Sum over the models of their cross-entropy."""
    return torch.stack([F.cross_entropy(model(x), y) for model in models]).sum()


def margin_maximising(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over the wrong classes of ``-log softmax(-z)``, (N,): MRBoost's (Zhang et al., ICML 2022)."""
    wrong = -(-logits).log_softmax(-1)
    own = wrong.gather(1, y[:, None]).squeeze(1)
    return (wrong.sum(1) - own) / (logits.shape[1] - 1)


def input_gradients(models: Sequence[nn.Module], x: Tensor, y: Tensor) -> list[Tensor]:
    """Gradients (N, CHW) of each model's cross-entropy over the image, through which weights learn.

    They can be differentiated with respect to ``x``, too, where it requires a gradient.
    """
    found = []
    for model in models:
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        loss = F.cross_entropy(model(leaf), y, reduction="sum")
        (g,) = torch.autograd.grad(loss, leaf, create_graph=True)
        found.append(g.flatten(1))
    return found


def pair_cosines(gradients: Sequence[Tensor]) -> Tensor:
    """Cosine of every pair, (pairs, N)."""
    return torch.stack(
        [F.cosine_similarity(a, b, dim=1, eps=1e-12) for a, b in combinations(gradients, 2)]
    )
