"""Margins that can be taken apart, row by row: of logits, and of probabilities however sure a model is.

Both are ``a * (-own) + b * other`` with coefficients per row. Without targets ``own`` is the label and
``other`` the best other class; with targets ``other`` is the target and ``own`` the best class beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advens.attacks.losses import Margin
from advens.attacks.parts import part
from advens.attacks.whitebox.rows import Rows

Terms = Callable[[Tensor, Tensor, "Tensor | None", Tensor, Tensor], Tensor]
"""Logits (N, classes), labels, targets, and the coefficients a and b (N,) to a loss (N,)."""


def sides(logits: Tensor, y: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """The class that must fall and the class that must rise, (N,) each."""
    fixed = y if target is None else target
    best = logits.scatter(1, fixed[:, None], -torch.inf).argmax(1)
    return (fixed, best) if target is None else (best, fixed)


def logit_terms(logits: Tensor, y: Tensor, target: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``-a z_own + b z_other``, (N,)."""
    own, other = sides(logits.detach(), y, target)
    return b.to(logits) * _pick(logits, other) - a.to(logits) * _pick(logits, own)


def probability_terms(
    logits: Tensor, y: Tensor, target: Tensor | None, a: Tensor, b: Tensor
) -> Tensor:
    """``-a p_own + b p_other``, (N,), whose gradient is true up to a positive scale per row.

    Autograd's own gradient dies when a model is sure: ``p_other`` and ``1 - p_own`` underflow, and
    long before that ``1 - p_own`` is rounded to 0, so that the label's logit is no longer pushed.
    Here the gradient is written down instead. Over logits,

        grad p_i = p_i (1 - p_i) (e_i - softmax of the logits other than i),

    where the bracket never fades and the factor is held as a logarithm, ``1 - p_i`` as a sum over
    the other classes. Both terms' factors are divided by the larger of them, which is the positive
    scale. Attacks use the sign or the direction of a gradient, so it changes nothing; only a mean of
    several gradients (``eot``) weighs each by its own scale. The value of the loss is exact.
    """
    z = logits.detach()
    a, b = a.to(z), b.to(z)
    own, other = sides(z, y, target)
    down, log_down = _slope(z, own)
    up, log_up = _slope(z, other)
    log_down, log_up = log_down + a.abs().log(), log_up + b.abs().log()
    scale = torch.maximum(log_down, log_up)
    scale = torch.where(scale.isneginf(), 0.0, scale)  # a = b = 0
    falling = a.sign() * (log_down - scale).exp()
    rising = b.sign() * (log_up - scale).exp()
    along = ((rising[:, None] * up - falling[:, None] * down) * logits).sum(1)
    p = z.softmax(1)
    return b * _pick(p, other) - a * _pick(p, own) + (along - along.detach())


@part("loss", "pm", paper="Xie et al., CVPR 2025 (PMA)", year=2025)
class ProbabilityMargin:
    """Probability margin: the best other class minus the label (or the target minus the best other).

    Its gradient is scaled per sample so that it does not fade: see `probability_terms`.
    """

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        ones = torch.ones_like(logits[:, 0])
        return probability_terms(logits, y, target, ones, ones)


TERMS: dict[type, Terms] = {Margin: logit_terms, ProbabilityMargin: probability_terms}
"""Losses that can be taken apart."""


def note_nearest(rows: Rows, logits: Tensor, where: Tensor) -> None:
    """Keep the points ``x`` that are nearest to breaking the model, by the logit margin, as ``near_x``.

    Args:
        rows: their memory holds ``x``, the best margin ``near`` so far and ``near_x``.
        logits: at ``x``, of the rows where ``where`` (N,) holds.
    """
    target = None if rows.target is None else rows.target[where]
    near = rows.memory["near"].clone()
    near[where] = Margin()(logits, rows.y[where], target).to(near.dtype)
    nearer = near > rows.memory["near"]
    rows.keep("near", nearer, near)
    rows.keep("near_x", nearer, rows.memory["x"])


def _slope(z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Direction (N, classes) and log of the length (N,) of ``grad p_i`` over logits."""
    column = index[:, None]
    others = z.scatter(1, column, -torch.inf)
    direction = (-others.softmax(1)).scatter(1, column, 1.0)
    return direction, _pick(z, index) + others.logsumexp(1) - 2 * z.logsumexp(1)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[:, None]).squeeze(1)
