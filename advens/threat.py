"""The threat model: a norm, a budget, and the goal. It knows the ball and nothing about models.

Importing this module does not import torch, so that suites can be read without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from advens.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from advens.seeding import Draws

NORMS = ("linf", "l2", "l1")
TINY = 1e-12
DUST = 1e-10
"""What the l_1 projection leaves of a pixel value's change is zero when it is no more than rounding."""
SPARSE = 0.01
"""Share of the pixel values that one step changes in l_1."""


def parse_eps(value: float | str, what: str = "eps") -> float:
    """A budget as a number: ``0.2`` or ``"8/255"``. Raises InputError when it is neither."""
    try:
        number = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        raise InputError(f'{what} = {value!r} is not a number; write 0.03 or "8/255"') from None
    if not math.isfinite(number):
        raise InputError(f"{what} = {value!r} is not finite")
    return number


@dataclass(frozen=True)
class Threat:
    """The ball of radius ``eps`` in ``norm`` around an image, inside [0, 1].

    Args:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``; ``"Linf"``, ``"inf"``, ``"L2"`` and ``"L1"`` are understood.
        eps: the radius on images in [0, 1]; kept as written (``"8/255"``), see ``radius``.
    """

    norm: str = "linf"
    eps: float | str = "8/255"

    def __post_init__(self) -> None:
        known = {"l_inf": "linf", "inf": "linf", "l_2": "l2", "l_1": "l1"} | {n: n for n in NORMS}
        object.__setattr__(self, "norm", known.get(str(self.norm).lower(), self.norm))
        if self.norm not in NORMS:
            raise InputError(f"unknown norm '{self.norm}'{nearest(str(self.norm), NORMS)}")
        if isinstance(self.eps, bool) or self.radius <= 0:
            raise InputError(f"eps = {self.eps} is out of range; it must be above 0")
        if self.norm == "linf" and self.radius > 1:
            raise InputError(
                f"eps = {self.eps} is out of range; images lie in [0, 1], so an l_inf budget is at "
                f'most 1 (did you mean "{self.eps}/255"?)'
            )

    @property
    def radius(self) -> float:
        """eps as a number."""
        return parse_eps(self.eps)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point of the ball around ``x`` and of [0, 1] for ``x_adv``; both (N, C, H, W).

        In l_inf and l_1 it is the nearest one.
        """
        if self.norm == "linf":
            return x_adv.clamp(*self.bounds(x))
        if self.norm == "l1":
            return project_l1(x_adv, x, self.radius)
        # clamping towards the box that holds x never lengthens the perturbation
        delta = x_adv.clamp(0.0, 1.0) - x
        return (
            x + delta * (self.radius / norms(delta, "l2").clamp_min(TINY)).clamp_max(1.0)
        ).clamp_(0.0, 1.0)

    def project_(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`project` with ``x_adv`` overwritten: the same values, one temporary tensor."""
        import torch

        if self.norm != "linf":
            return x_adv.copy_(self.project(x_adv, x))
        edge = x - self.radius
        torch.maximum(x_adv, edge, out=x_adv)
        torch.add(x, self.radius, out=edge)
        return torch.minimum(x_adv, edge, out=x_adv).clamp_(0.0, 1.0)

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and highest values an l_inf ball around ``x`` and [0, 1] allow."""
        return (x - self.radius).clamp_(min=0.0), (x + self.radius).clamp_(max=1.0)

    def steepest(self, g: Tensor) -> Tensor:
        """The unit step of this norm along ``g``, per sample.

        It is the sign in l_inf and ``g / ||g||_2`` in l_2. In l_1 the steepest step changes a single pixel
        value; as usual for PGD, the step goes along the signs of the largest 1 % of the values instead
        (Tramer & Boneh, NeurIPS 2019).
        """
        if self.norm == "linf":
            return g.sign()
        if self.norm == "l1":
            import torch

            count = math.ceil(SPARSE * g[0].numel())
            return sparse_signs(g, torch.full_like(g[:, 0, 0, 0], count, dtype=torch.long))
        return unit_l2(g)

    def random_start(self, x: Tensor, draws: Draws) -> Tensor:
        """A uniform point of the ball around ``x``, projected on [0, 1]."""
        if self.norm == "linf":
            return self.project(x + draws.uniform(x, -self.radius, self.radius, "start"), x)
        if self.norm == "l1":
            u = draws.uniform(x, -1.0, 1.0, "start")
        else:
            u = draws.normal(x, 1.0, "start")
        radius = draws.uniform(x[:, :1, :1, :1], 0.0, 1.0, "radius")
        return self.project(x + self.inside(u, radius), x)

    def inside(self, u: Tensor, radius: Tensor) -> Tensor:
        """A uniform point of the l_2 or l_1 ball around 0, from random numbers.

        Args:
            u: (N, C, H, W), normal in l_2 and uniform between -1 and 1 in l_1.
            radius: (N, 1, 1, 1), uniform between 0 and 1.
        """
        length = radius ** (1 / u[0].numel())
        direction = unit_l2(u) if self.norm == "l2" else unit_l1(-u.sign() * u.abs().clamp_min(TINY).log())
        return self.radius * length * direction

    def noise(self, like: Tensor, radius: float, draws: Draws, *tag: object) -> Tensor:
        """Uniform noise of ``radius`` times the budget: in the cube, or as long as the ball's radius."""
        if self.norm == "linf":
            reach = radius * self.radius
            return draws.uniform(like, -reach, reach, *tag)
        unit = unit_l2 if self.norm == "l2" else unit_l1
        return radius * self.radius * unit(draws.uniform(like, -1.0, 1.0, *tag))

    def gaussian(self, like: Tensor, factor: float, draws: Draws, *tag: object) -> Tensor:
        """Normal noise with standard deviation ``factor`` eps a pixel.

        In l_2 it is ``factor`` eps / sqrt(CHW), in l_1 ``factor`` eps / CHW.
        """
        std = factor * self.radius
        if self.norm != "linf":
            std /= float(like[0].numel()) ** (0.5 if self.norm == "l2" else 1.0)
        return draws.normal(like, std, *tag)

    def quantise(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """An 8-bit image inside the ball around the 8-bit image ``x``, close to ``x_adv``.

        Args:
            x_adv: (N, C, H, W) in [0, 1], inside the ball.
            x: the clean images, 8-bit values divided by 255.

        Returns:
            uint8 (N, C, H, W): the nearest one in l_inf and in l_1. In l_2, where rounding would leave the
            ball, the perturbation is shrunk just enough first (bisection per sample).
        """
        import torch

        clean = (x.double() * 255).round()
        wanted = x_adv.double() * 255 - clean
        limit = self.radius * 255 * (1 + 1e-9)
        if self.norm == "linf":
            return (
                (clean + wanted.round().clamp(-math.floor(limit), math.floor(limit)))
                .clamp(0, 255)
                .to(torch.uint8)
            )

        if self.norm == "l1":
            return (clean + _rounded_l1(wanted, math.floor(self.radius * 255 + 1e-7))).to(torch.uint8)

        def rounded(scale: Tensor) -> Tensor:
            return (clean + (scale * wanted).round()).clamp(0, 255) - clean

        full = torch.ones_like(wanted[:, :1, :1, :1])
        low, high = torch.zeros_like(full), full
        for _ in range(20):
            middle = (low + high) / 2
            inside = norms(rounded(middle), "l2") <= limit
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        fits = norms(rounded(full), "l2") <= limit
        return (clean + rounded(torch.where(fits, full, low))).to(torch.uint8)

    def excess(self, adv: Tensor, clean: Tensor) -> Tensor:
        """How far stored bytes leave the ball: (N,) norm of ``adv - clean`` minus eps, uint8 inputs.

        At most 1e-9 for every honest image.
        """
        delta = (adv.double() - clean.double()) / 255
        return norms(delta, self.norm).flatten() - self.radius


def unit_l2(g: Tensor) -> Tensor:
    """``g / ||g||_2`` per sample; zero stays zero, and tiny gradients do not underflow."""
    import torch

    tiny = torch.finfo(g.dtype).tiny
    dims = tuple(range(1, g.dim()))
    g = g / g.abs().amax(dim=dims, keepdim=True).clamp_min_(tiny)
    return g.div_(g.square().sum(dim=dims, keepdim=True).sqrt_().clamp_min_(tiny))


def unit_l1(g: Tensor) -> Tensor:
    """``g / ||g||_1`` per sample; zero stays zero."""
    import torch

    return g / norms(g, "l1").clamp_min(torch.finfo(g.dtype).tiny)


def sparse_signs(g: Tensor, count: Tensor) -> Tensor:
    """The signs of the ``count`` (N,) largest values of |g| over their number, per sample; others are zero.

    Values that are as large as the smallest of these count, too; a value of zero has no sign.
    """
    size = g.abs().flatten(1)
    largest = size.topk(int(count.max()) if len(count) else 1, dim=1).values
    least = largest.gather(1, count[:, None] - 1).view(-1, *[1] * (g.dim() - 1))
    return unit_l1(g.sign() * (g.abs() >= least))


def project_l1(x_adv: Tensor, x: Tensor, radius: float | Tensor) -> Tensor:
    """The point of the l_1 ball around ``x`` intersected with [0, 1] that is nearest to ``x_adv``.

    With ``w = x_adv - x`` and the room ``r_i`` that [0, 1] leaves in the direction of ``w_i``, it is
    ``x_i + sign(w_i) min(r_i, max(|w_i| - lambda, 0))``, where lambda >= 0 is the least for which the
    perturbation fits. Projecting on one set after the other gives another point, or one outside.

    Args:
        x_adv: (N, C, H, W).
        x: (N, C, H, W) in [0, 1].
        radius: of the ball, one number or (N,).

    Source: Croce & Hein, ICML 2021 (Mind the box), proposition 2.1.
    """
    import torch

    w = (x_adv - x).flatten(1).double()
    flat = x.flatten(1).double()
    size, room = w.abs(), torch.where(w > 0, 1 - flat, flat)
    budget = torch.as_tensor(radius, dtype=w.dtype, device=w.device).expand(len(w))
    step = torch.minimum(size, room)
    over = step.sum(1) > budget
    if bool(over.any()):
        size, room = size[over], room[over]
        left = size - _threshold(size, room, budget[over])
        step[over] = torch.minimum(torch.where(left > DUST, left, 0.0), room)
    return (x + (w.sign() * step).to(x.dtype).view_as(x)).clamp_(0.0, 1.0)


def _threshold(size: Tensor, room: Tensor, budget: Tensor) -> Tensor:
    """lambda (N, 1) with ``sum_i min(room_i, max(size_i - lambda, 0)) = budget``; the sum at 0 is more.

    The sum falls in lambda and is linear between the values of size and of size - room. Newton's steps
    find the root as soon as they start on its piece; those that leave the bracket are replaced by bisection.
    """
    import torch

    budget = budget[:, None]
    low, high = torch.zeros_like(budget), size.amax(1, keepdim=True)
    at = low
    for _ in range(200):
        left = (size - at).clamp_min_(0)
        step = torch.minimum(left, room)
        more = step.sum(1, keepdim=True) - budget
        if bool((more.abs() <= 1e-13 * budget).all()):
            break
        falling = (left > 0).logical_and_(step == left).sum(1, keepdim=True)
        low, high = torch.where(more > 0, at, low), torch.where(more > 0, high, at)
        newton = at + more / falling.clamp_min(1)
        found = (newton > low) & (newton < high) & (falling > 0)
        ahead = torch.where(found, newton, (low + high) / 2)
        at = torch.where(more.abs() <= 1e-13 * budget, at, ahead)
    return at


def _rounded_l1(wanted: Tensor, most: int) -> Tensor:
    """The integers nearest to ``wanted`` (N, C, H, W) whose absolute values sum to at most ``most``.

    Where rounding makes the sum too large, values go one back towards zero, those first that rounding took
    furthest from zero: they cost least.
    """
    import torch

    exact = wanted.flatten(1).abs()
    size = exact.round()
    while bool(((excess := size.sum(1, keepdim=True) - most) > 0).any()):
        cost = torch.where(size > 0, exact - size, torch.inf)
        rank = cost.argsort(dim=1, stable=True).argsort(1)
        size = size - ((rank < excess) & (size > 0)).to(size.dtype)
    return wanted.sign() * size.view_as(wanted)


def norms(delta: Tensor, norm: str) -> Tensor:
    """Per-sample norm, shape (N, 1, 1, 1)."""
    flat = delta.flatten(1)
    if norm == "linf":
        value = flat.abs().amax(1)
    else:
        value = flat.abs().sum(1) if norm == "l1" else flat.norm(dim=1)
    return value.view(-1, *([1] * (delta.dim() - 1)))
