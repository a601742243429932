"""AWP: adversarial weight perturbation (Wu et al., NeurIPS 2020), for losses of adversarial training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

Answer = Callable[[Tensor], Tensor]
"""Maps images (N, C, H, W) to logits (N, classes)."""


def at_worst_weights(member: nn.Module, loss: Callable[[Answer], Tensor], gamma: float) -> Tensor:
    """The loss at weights moved to where it is larger; its gradient is that of the weights as they are.

    Every weight with more than one dimension goes from w to ``w + gamma ||w|| g / ||g||``, where g is the
    gradient of the loss. The published code takes the same direction from a step of SGD on a copy. There the
    weight decay acts on the moved weights; here it acts on the weights as they are.

    Args:
        loss: of the member as a function of images; a scalar.
        gamma: size of the move relative to each weight; 0 gives the loss at the weights as they are.
    """
    if not gamma:
        return loss(member)
    weights = {name: p for name, p in member.named_parameters() if p.dim() > 1}
    buffers = {name: b.clone() for name, b in member.named_buffers()}  # batch-norm's do not see this pass

    def unseen(x: Tensor) -> Tensor:
        out: Tensor = functional_call(member, buffers, (x,))
        return out

    gradients = torch.autograd.grad(loss(unseen), list(weights.values()))
    with torch.no_grad():
        moves = {
            name: gamma * w.norm() * g / g.norm().clamp_min(1e-12)
            for (name, w), g in zip(weights.items(), gradients, strict=True)
        }

    def moved(x: Tensor) -> Tensor:
        out: Tensor = functional_call(member, {name: w + moves[name] for name, w in weights.items()}, (x,))
        return out

    return loss(moved)
