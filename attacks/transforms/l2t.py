"""L2T: learning to transform, pairs of operators drawn by scores that follow the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.geometry import enlarged, rotate
from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.attacks.spectrum import spectral
from advens.attacks.transforms.admix import Mixed, others_of
from advens.attacks.transforms.bsr import BSR
from advens.attacks.transforms.si import faded
from advens.fields import Count, Several
from advens.seeding import Draws

DROPPED = ("1", "12", "123", "1234", "12345", "2345", "1345", "1245", "1235", "1234")
"""Ten lists of drop rates, in tenths."""
OPERATORS: tuple[tuple[str, Any, int], ...] = (
    ("identity", 0, 1),
    *(("rotate", 30 * i, 5) for i in range(1, 11)),
    *(("scale", 0, n) for n in range(1, 11)),
    *(("enlarge", 110 + 5 * i, 1) for i in range(10)),
    *(("shuffle", n, 10) for n in range(3, 13)),
    *(("admix", eta, 3 * n) for eta in (0.2, 0.4) for n in range(1, 6)),
    *(("drop", rates, len(rates)) for rates in DROPPED),
    *(("mask", n, 5) for n in range(2, 12)),
    *(("spectrum", i / 10, 10) for i in range(1, 10)),
    *(("crop", i / 10, 5) for i in range(1, 10)),
    *(("shift", 50 + 5 * i, 5) for i in range(9)),
)
"""Name, parameter and number of copies of each."""


@part("transform", "l2t", paper="Zhu et al., CVPR 2024 (L2T)", year=2024, couples="shard")
class L2T:
    """Views of the image under pairs of operators, drawn by scores that learn which raise the loss.

    Each step draws ``pairs`` pairs (o1, o2) of 98 operators, independently, with probabilities P =
    softmax(w), and averages the gradients of ``J(o2(o1(x)))``. Then ``w <- w + lr grad_w mean_l J_l
    log(P(o1) P(o2))``, which ascends the expected loss; w is 0 at first. Published code takes ``grad_w
    mean_l J_l P(o1) P(o2)`` instead (``learned="probability"``), which is smaller by a factor of about
    98^2, so that w stays where it is and nothing is learned.

    Operators, with the number of views that each has: the identity (1); rotations by a multiple of 30
    degrees over 2^i (5); x / 2^i for i < n (n = 1, ..., 10); enlarging, padding and resizing back as
    ``dem`` does (1); blocks shuffled as ``bsr`` does, unrotated (10); other images mixed in as ``admix``
    does, at three scales (3 to 15); values dropped with rates from a list (1 to 5); a random cell of a grid
    masked (5); a disturbed spectrum, as in ``ssa`` (10); central crops, resized (5); shifts (5), published
    as parts of a pixel to the nearest one, and so by one pixel or none. A pair has the product of both
    numbers, 34 on average and up to 225. So that every step costs the same, ``views`` of a pair's are
    taken, evenly spread over them from a random start, and again and again where it has fewer.

    Every sample has scores and pairs of its own. Published code has one of each for the batch, and learns
    from the mean loss; ``batch_coupled`` does so with the images that are worked on at once. Sizes, orders
    and places are drawn once a step and view for the shard; noise and drops are a sample's own; other
    images are clean ones of the shard, or adversarial (``mixed``), see ``admix``. Where a step takes
    several gradients, the mean of their losses is learned from.

    Args:
        pairs: how many pairs a step (L), at least 2.
        views: how many views of each pair.
        lr: the step of the scores.
        learned: from the ``score`` function, or from the ``probability``, as published code has it.
        mixed: other images as they are ``clean``, or ``adversarial`` as they have become.
        batch_coupled: scores and pairs of the images that are worked on at once.
    """

    pairs: Several = 3
    views: Count = 34
    lr: float = 0.01
    learned: Literal["score", "probability"] = "score"
    mixed: Mixed = "clean"
    batch_coupled: bool = False

    @property
    def copies(self) -> int:
        return self.pairs * self.views

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        pair, view = divmod(copy, self.views)
        first, second = self._now(x, context)["chosen"][:, pair].unbind(1)
        counts = torch.tensor([copies for _, _, copies in OPERATORS], device=x.device)
        draws = context.draws.fork("l2t", pair)
        place = (view + draws.number(0, 1, "start")) / self.views
        index = (place * (counts[first] * counts[second])).long()
        draws = draws.fork(view)
        x = self._applied(x, first, index // counts[second], draws.fork("first"), context)
        return self._applied(x, second, index % counts[second], draws.fork("second"), context)

    def learn(self, copy: int, loss: Tensor, context: Context) -> None:
        """Note a view's loss (N,), which is learned from when the next step begins."""
        now = context.memory["l2t"]
        now["loss"][:, copy // self.views] += loss.double()
        now["count"][copy // self.views] += 1

    def _now(self, x: Tensor, context: Context) -> dict[str, Any]:
        """What this step draws, and room for its losses."""
        before, draws = context.memory.get("l2t"), context.draws
        if before is not None and before["step"] == draws.step:
            return before  # type: ignore[no-any-return]
        w = torch.zeros(len(x), len(OPERATORS), dtype=torch.float64, device=x.device)
        if before is not None:
            w = self._learned(before)
        shape = torch.empty(len(x), 2 * self.pairs, dtype=torch.float64, device=x.device)
        if self.batch_coupled:
            shared = [draws.number(0, 1, "l2t", "choice", i) for i in range(2 * self.pairs)]
            u = shape.new_tensor(shared).expand_as(shape).contiguous()
        else:
            u = draws.uniform(shape, 0, 1, "l2t", "choice")
        chosen = torch.searchsorted(w.softmax(1).cumsum(1), u).clamp_max(len(OPERATORS) - 1)
        now = {
            "step": draws.step, "w": w, "chosen": chosen.view(len(x), self.pairs, 2),
            "loss": w.new_zeros(len(x), self.pairs), "count": w.new_zeros(self.pairs),
        }  # fmt: skip
        context.memory["l2t"] = now
        return now

    def _learned(self, before: dict[str, Any]) -> Tensor:
        """The scores after a step."""
        w: Tensor = before["w"]
        chosen: Tensor = before["chosen"]
        loss: Tensor = before["loss"] / before["count"].clamp_min(1)
        if self.batch_coupled:
            loss = loss.mean(0, keepdim=True).expand_as(loss)
        p = w.softmax(1)
        if self.learned == "probability":
            loss = loss * p.gather(1, chosen.flatten(1)).view_as(chosen).prod(2)
        # d log(P(o1) P(o2)) / dw = e_o1 + e_o2 - 2 P
        rise = torch.zeros_like(w).scatter_add_(1, chosen.flatten(1), loss.repeat_interleave(2, 1))
        return w + self.lr / self.pairs * (rise - 2 * loss.sum(1, keepdim=True) * p)

    def _applied(
        self, x: Tensor, operator: Tensor, copy: Tensor, draws: Draws, context: Context
    ) -> Tensor:
        """Every image under its own operator; images that share one are worked on together."""
        here = replace(context, draws=draws)

        @cache
        def drawn(what: str) -> Tensor:
            if what == "noise":
                return context.threat.gaussian(x, 1.0, draws, what)
            if what.startswith("other"):
                return others_of(x, here, self.mixed, what)
            return draws.uniform(x, 0, 1, what)

        pieces, order = [], []
        for key in (16 * operator + copy).unique().tolist():
            rows = (16 * operator + copy == key).nonzero().flatten()
            name, value, copies = OPERATORS[key // 16]

            def own(what: str, rows: Tensor = rows) -> Tensor:
                return drawn(what)[rows]

            pieces.append(operate(name, value, key % 16, copies, x[rows], here, own))
            order.append(rows)
        return torch.cat(pieces)[torch.cat(order).argsort()]


def operate(
    name: str, value: Any, copy: int, copies: int, x: Tensor, context: Context, own: Callable[[str], Tensor]
) -> Tensor:
    """Images under view number ``copy`` of an operator; ``own`` are their random numbers and other images."""
    draws = context.draws
    height, width = x.shape[-2:]
    if name == "rotate":
        return rotate(x, value / 2**copy, mode="nearest")
    if name == "scale":
        return faded(x, copy, 0.0)
    if name == "enlarge":
        return enlarged(x, height * value // 100, draws)
    if name == "shuffle":
        return BSR(blocks=value, angle=0.0)(x, copy, context)
    if name == "admix":
        other, scale = divmod(copy, 3)
        return faded(x + value * own(f"other {other}"), scale, 0.0)
    if name == "drop":
        return x * (own("kept") >= int(value[copy]) / 10)
    if name == "mask":
        (row, column), mask = draws.integers(value, 2, "cell"), torch.ones_like(x[:1, :1])
        top, bottom = (round(height / value * (row + end)) for end in (0, 1))
        left, right = (round(width / value * (column + end)) for end in (0, 1))
        mask[..., top:bottom, left:right] = 0
        return x * mask
    if name == "spectrum":
        return spectral(x + own("noise"), 1 + value * (2 * own("mask") - 1))
    if name == "crop":
        ratio = value + (1 - value) * (copy + 1) / copies
        rows, columns = max(1, int(height * ratio)), max(1, int(width * ratio))
        top, left = (height - rows) // 2, (width - columns) // 2
        kept = x[..., top : top + rows, left : left + columns]
        return F.interpolate(kept, (height, width), mode="bilinear", align_corners=False)
    if name == "shift" and value * (copy + 1) > 50 * copies:
        return F.pad(x, (1, 0, 1, 0))[..., :height, :width]
    return x
