"""Signed gradient ascent of a loss in an l_inf ball: the inner loop of adversarial training (PGD)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RowLoss = Callable[[Tensor], Tensor]
"""Maps images (N, C, H, W) to the loss (N,) that is maximised."""


def ascend(
    loss: RowLoss,
    x: Tensor,
    start: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    momentum: float | None = None,
) -> Tensor:
    """Signed gradient steps from ``start`` inside [0, 1] and the l_inf ball of radius eps around ``x``.

    Args:
        loss: of the models, whose weights should not require gradients meanwhile.
        momentum: decay of the sum of gradients, each divided by its mean absolute value as in MI-FGSM; None
            steps along the gradient alone.
    """
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    at, m = start.clamp(low, high), torch.zeros_like(x)
    for _ in range(steps):
        leaf = at.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss(leaf).sum(), leaf)
        if momentum is not None:
            size = g.abs().mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
            m = momentum * m + g / size
            g = m
        at = torch.add(at, g.sign(), alpha=step_size).clamp(low, high)
    return at.detach()
