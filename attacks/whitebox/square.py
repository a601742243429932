"""Square, row by row: random search over squares of pixels, which sees logits and no gradient."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from math import sqrt
from typing import Annotated

import torch
from torch import Tensor

from advens.attacks.interfaces import Loss, Passes
from advens.attacks.losses import Margin
from advens.attacks.parts import one, part
from advens.attacks.registry import recipe
from advens.attacks.whitebox.engine import WhiteBox
from advens.attacks.whitebox.oracle import RowOracle
from advens.attacks.whitebox.rows import Rows
from advens.fields import Count, Share
from advens.threat import TINY, Threat, norms

PAPER = "Andriushchenko et al., ECCV 2020"
NOMINAL = 10_000
"""Queries of the paper, for which its schedule is written."""
HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Those of them after which p is halved."""


@part("attack", "square", family="white-box", norms=("linf", "l2", "l1"), paper=PAPER, year=2020)
class SquareAttack(WhiteBox):
    """Random search: a change of one square of pixels is kept when it raises the loss.

    The area of the square is a part p of the image, halved after 10, 50, ... 8,000 of 10,000 queries.
    With another number of queries the schedule is rescaled to it, as in the authors' code of this
    attack; AutoAttack keeps the published counts (``rescale=False``), so that its 5,000 queries see
    the first half of the schedule.
    In l_inf the square goes to one corner of the ball, a random sign per channel; the start is
    vertical stripes. In l_2 two opposite hills are added to the square, which takes over the length
    of another square, set to zero; the start is a grid of such hills. In l_1 it is the same with steeper
    hills and l_1 lengths, and the result is projected on the ball and [0, 1] together (Croce & Hein 2021).
    The first point that fools the model is kept whatever its loss.

    The rule is that of the authors' AutoAttack code. As there, a square never covers the last row
    and column. It departs from that code in three ways:

    * each sample has places and signs of its own, as in the paper; AutoAttack draws them once for a
      batch, so that its samples are lucky or not together;
    * a square is shorter than the image (its shorter side, when it is not square), as in the paper's
      l_inf code;
    * in l_2 the hills of the start that would cross an edge are left out, where AutoAttack fails.

    From the same numbers, 300 queries break the same of 200 images of `digits:resnet-at` as with the authors'
    package, in l_inf (eps 0.2) and in l_2 (eps 3).

    Args:
        threat: the ball.
        loss: what is ascended; cross-entropy is the other choice of the source.
        queries: changes tried in one run; the start is one more.
        p_init: part of the image that the first squares cover.
        rescale: whether the schedule of p is stretched or shrunk from 10,000 to ``queries``.
        restarts: runs, each from a start of its own.
        eot: passes averaged at each point, for models with randomness of their own.

    Source: Andriushchenko et al. 2020; Croce & Hein 2021 (Mind the box), in l_1.
    """

    threat: Threat = Threat()
    loss: Annotated[Loss, one("loss")] = Margin()
    queries: Count = 5000
    p_init: Share = 0.8
    rescale: bool = True
    restarts: Count = 1
    eot: Count = 1

    @property
    def iterations(self) -> int:
        """Points a sample that is never broken is looked at: each run's start and its queries."""
        return self.restarts * (1 + self.queries)

    def passes(self, surrogates: int) -> Passes:
        """Passes per sample: forward alone, one for each point."""
        return Passes(surrogates * self.iterations * self.eot, 0)

    def sides(self, h: int, w: int) -> tuple[int, ...]:
        """Sides of the squares in images (h, w), from p = ``p_init`` to the ninth halving.

        They are odd in l_2 and l_1.
        """
        odd, longest = self.threat.norm != "linf", max(1, min(h, w) - 1)
        if odd:
            longest -= 1 - longest % 2
        found = []
        for level in range(len(HALVED) + 1):
            side = max(round(sqrt(self.p_init / 2**level * h * w)), 3 if odd else 1)
            found.append(min(side + (1 - side % 2 if odd else 0), longest))
        return tuple(found)

    def begin(self, oracle: RowOracle, rows: Rows) -> None:
        """Room for the point at hand and for the nearest one; runs start in ``advance``."""
        lowest = torch.full_like(rows.x[:, 0, 0, 0], -torch.inf)
        rows.memory = {
            "x": rows.x.clone(), "loss": lowest, "near_x": rows.x.clone(), "near": lowest,
        }  # fmt: skip

    def advance(self, oracle: RowOracle, rows: Rows) -> None:
        """A look at one changed point, or at a start, and the choice between it and the one at hand."""
        at, memory = rows.t % (1 + self.queries), rows.memory
        starts = at == 0
        x = self._changed(oracle, rows, (at - 1).clamp_min(0))
        if bool(starts.any()):
            x[starts] = self._placed(oracle, rows.pick(starts))
        logits = oracle.logits(x, rows)
        loss = self.loss(logits, rows.y, rows.target).to(x.dtype)
        margin = Margin()(logits, rows.y, rows.target).to(x.dtype)
        fools = (margin >= 0) & (memory["near"] < 0)
        kept = starts | fools | (loss > memory["loss"])
        rows.keep("loss", kept, loss)
        rows.keep("x", kept, x)
        nearer = margin > memory["near"]
        rows.keep("near", nearer, margin)
        rows.keep("near_x", nearer, x)

    def last(self, rows: Rows) -> Tensor:
        """The points nearest to breaking the model, by the logit margin."""
        return rows.memory["near_x"]

    def observed(self, rows: Rows) -> dict[str, Tensor]:
        """The loss at the point at hand, and the largest logit margin so far."""
        return {"loss": rows.memory["loss"], "margin": rows.memory["near"]}

    def _placed(self, oracle: RowOracle, rows: Rows) -> Tensor:
        """Starts (N, C, H, W): vertical stripes at +-eps, or a grid of hills of length eps in all."""
        n, c, h, w = rows.x.shape
        norm = self.threat.norm
        if norm == "linf":
            stripes = _signs(oracle.numbers(rows, (c, 1, w), "stripes"), rows.x)
            return self.threat.project(rows.x + self.threat.radius * stripes, rows.x)
        s = max(1, min(h, w) // 5)
        first = max(0, min(h, w) - 5 * s) // 2
        down, across = (h - first) // s, (w - first) // s
        u = oracle.numbers(rows, (1 + c, down, across), "grid")
        hills = _hills((s,), norm, rows.x.dtype, rows.x.device)[0][(u[:, 0] > 0.5).long()]
        hills = hills.transpose(2, 3).reshape(n, 1, down * s, across * s)
        signs = _signs(u[:, 1:], rows.x).repeat_interleave(s, 2).repeat_interleave(s, 3)
        delta = torch.zeros_like(rows.x)
        delta[:, :, first : first + down * s, first : first + across * s] = signs * hills
        return self._held(delta, rows.x)

    def _changed(self, oracle: RowOracle, rows: Rows, query: Tensor) -> Tensor:
        """The points at hand with one square changed, (N, C, H, W); ``query`` (N,) counts from 0."""
        x, at_hand, threat = rows.x, rows.memory["x"], self.threat
        _, c, h, w = x.shape
        level = _levels(self.queries, self.rescale, x.device)[query]
        sides = self.sides(h, w)
        side = torch.tensor(sides, device=x.device)[level]
        u = oracle.numbers(rows, (5 + c,), "square")
        signs = _signs(u[:, 5:, None, None], x)
        top, left = (u[:, 0] * (h - side)).long(), (u[:, 1] * (w - side)).long()
        square = _inside(top, left, side, x)
        if threat.norm == "linf":
            return threat.project(at_hand + 2 * threat.radius * signs * square, x)
        delta = at_hand - x
        other = _inside((u[:, 2] * (h - side)).long(), (u[:, 3] * (w - side)).long(), side, x)
        i = (torch.arange(h, device=x.device) - top[:, None]).clamp(0, max(sides) - 1)
        j = (torch.arange(w, device=x.device) - left[:, None]).clamp(0, max(sides) - 1)
        turned = (u[:, 4] > 0.5).long()[:, None, None]
        hills = _hills(sides, threat.norm, x.dtype, x.device)
        eta = hills[level[:, None, None], turned, i[:, :, None], j[:, None]][:, None]
        new = signs * eta * square + _unit(delta * square, threat.norm)
        if threat.norm == "l1":
            spent = (delta * (square | other)).abs().sum((2, 3), keepdim=True)
            spare = (threat.radius - norms(delta, "l1")).clamp_min(0)
            new = _unit(new, "l1") * (spare + c * spent)
            return self._held(torch.where(square, new, delta * ~other), x)
        spent = (delta * (square | other)).square().sum((2, 3), keepdim=True)
        spare = (threat.radius**2 - norms(delta, "l2").square()).clamp_min(0)
        new = _unit(new, "l2") * (spare / c + spent).sqrt()
        return self._held(torch.where(square, new, delta * ~other), x)

    def _held(self, delta: Tensor, x: Tensor) -> Tensor:
        """``x`` and ``delta``: at length eps and cut to [0, 1] in l_2, projected in l_1."""
        if self.threat.norm == "l1":
            return self.threat.project(x + delta, x)
        return (x + delta / (norms(delta, "l2") + TINY) * self.threat.radius).clamp_(0.0, 1.0)


def _signs(u: Tensor, like: Tensor) -> Tensor:
    """-1 or 1, with equal chances, from U(0, 1)."""
    return torch.where(u > 0.5, 1.0, -1.0).to(like.dtype)


def _unit(delta: Tensor, norm: str) -> Tensor:
    """Every channel at length 1; zero stays zero."""
    if norm == "l1":
        return delta / (delta.abs().sum((2, 3), keepdim=True) + TINY)
    return delta / (delta.square().sum((2, 3), keepdim=True).sqrt() + TINY)


def _inside(top: Tensor, left: Tensor, side: Tensor, x: Tensor) -> Tensor:
    """Where each row's square is, (N, 1, H, W)."""
    i = torch.arange(x.shape[2], device=x.device) - top[:, None]
    j = torch.arange(x.shape[3], device=x.device) - left[:, None]
    rows, columns = ((k >= 0) & (k < side[:, None]) for k in (i, j))
    return (rows[:, :, None] & columns[:, None, :])[:, None]


@lru_cache(maxsize=64)
def _levels(queries: int, rescale: bool, device: torch.device) -> Tensor:
    """How often p is halved before each query, (queries,)."""
    nominal = (int(query / queries * NOMINAL) if rescale else query for query in range(queries))
    return torch.tensor([bisect_left(HALVED, query) for query in nominal], device=device)


@lru_cache(maxsize=64)
def _hills(sides: tuple[int, ...], norm: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A bump above its negative, and the same turned side by side, for some sides: (sides, 2, S, S).

    S is the longest side. Each pair has length 1 in the norm and is zero beyond its own side.
    """
    order = 1 if norm == "l1" else 2
    found = torch.zeros(len(sides), 2, max(sides), max(sides), dtype=torch.float64)
    for i, s in enumerate(sides):
        pair = torch.cat([_hill(s // 2, s, order), -_hill(s - s // 2, s, order)])
        found[i, 0, :s, :s] = pair / pair.norm(order)
        found[i, 1, :s, :s] = found[i, 0, :s, :s].T
    return found.to(device, dtype)


def _hill(h: int, w: int, order: int) -> Tensor:
    """Steps up to the centre, of length 1 (h, w): at k steps from it the sum of 1/(l+1)^2 over l >= k.

    In l_1 (``order`` 1) the power is 4.
    """
    steps = torch.arange(1, max(h, w) // 2 + 2, dtype=torch.float64).pow(-4 if order == 1 else -2)
    height = steps.flip(0).cumsum(0).flip(0)
    i, j = ((torch.arange(n) - n // 2).abs() for n in (h, w))
    hill = height[torch.maximum(i[:, None], j)]
    unit: Tensor = hill / hill.norm(order)
    return unit


@recipe(
    "square",
    symbol="Square",
    family="white-box",
    norms=("linf", "l2", "l1"),
    paper=PAPER,
    year=2020,
)
def Square() -> SquareAttack:
    """Random search over squares of pixels; asks for logits alone."""
    return SquareAttack()
