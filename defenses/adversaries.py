"""Adversarial images made while training: signed steps in the l_inf ball, on models that stand still."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

RowLoss = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) to a loss (N,) that is ascended."""


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
    """``steps`` signed gradient steps from ``start`` within eps of ``x`` and [0, 1].

    Args:
        momentum: decay of a sum of gradients of mean 1, as MI-FGSM's; None steps along the gradient.
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


@contextmanager
def standing(models: Sequence[nn.Module], *, train_mode: bool = False) -> Iterator[None]:
    """Models whose weights take no gradient, in eval mode unless told otherwise, for a while."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    grads = [(p, p.requires_grad) for model in models for p in model.parameters()]
    try:
        for model in models:
            model.requires_grad_(False).train(train_mode)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for p, wanted in grads:
            p.requires_grad_(wanted)
