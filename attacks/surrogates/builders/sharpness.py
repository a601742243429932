"""Training towards flat minima: the gradient's norm is minimised together with the loss.

Source: Li et al., "Making Substitute Models More Bayesian Can Enhance Transferability of Adversarial
Examples", ICLR 2023, and its published code, with its weight of 1 for the norm. The code goes back from the
other point by subtraction; here the weights are put back exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

SMALLEST = 1e-20
"""Least norm of a gradient, as published."""


@torch.no_grad()
def sharpen(learned: Iterable[nn.Parameter], backward: Callable[[], object], distance: float) -> None:
    """Make every ``grad`` that of ``J + |grad J|``, the Hessian's product by a finite difference.

    ``g + (g' - g) / distance``, where g' is the gradient at ``w + distance g / |g|`` and the norm is one over
    all weights.

    Args:
        learned: parameters w; their ``grad`` is g.
        backward: puts the gradient at the weights as they are into new ``grad`` tensors.
        distance: how far away g' is taken.
    """
    moved = [(w, w.grad, w.detach().clone()) for w in learned if w.grad is not None]
    norm = torch.stack([g.norm() for _, g, _ in moved]).norm().clamp(min=SMALLEST)
    for w, g, _ in moved:
        w.add_(g * (distance / norm))
    with torch.enable_grad():
        backward()
    for w, g, before in moved:
        w.copy_(before)
        assert w.grad is not None
        w.grad.sub_(g).div_(distance).add_(g)
