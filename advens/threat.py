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

NORMS = ("linf", "l2")
TINY = 1e-12


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
        norm: ``"linf"`` or ``"l2"``; ``"Linf"``, ``"inf"`` and ``"L2"`` are understood.
        eps: the radius on images in [0, 1]; kept as written (``"8/255"``), see ``radius``.
    """

    norm: str = "linf"
    eps: float | str = "8/255"

    def __post_init__(self) -> None:
        known = {"linf": "linf", "l_inf": "linf", "inf": "linf", "l2": "l2", "l_2": "l2"}
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
        """The point of the ball around ``x`` and of [0, 1] for ``x_adv``; both (N, C, H, W)."""
        if self.norm == "linf":
            return x_adv.clamp(*self.bounds(x))
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
        """The unit step of this norm along ``g``: its sign, or ``g / ||g||_2`` per sample."""
        if self.norm == "linf":
            return g.sign()
        return unit_l2(g)

    def random_start(self, x: Tensor, draws: Draws) -> Tensor:
        """A uniform point of the ball around ``x``, projected on [0, 1]."""
        if self.norm == "linf":
            return self.project(x + draws.uniform(x, -self.radius, self.radius, "start"), x)
        direction = draws.normal(x, 1.0, "start")
        length = draws.uniform(x[:, :1, :1, :1], 0.0, 1.0, "radius") ** (1 / x[0].numel())
        return self.project(x + self.radius * length * self.steepest(direction), x)

    def noise(self, like: Tensor, radius: float, draws: Draws, *tag: object) -> Tensor:
        """Uniform noise of ``radius`` times the budget: in the cube, or as long as an l_2 radius."""
        if self.norm == "linf":
            reach = radius * self.radius
            return draws.uniform(like, -reach, reach, *tag)
        return radius * self.radius * self.steepest(draws.uniform(like, -1.0, 1.0, *tag))

    def gaussian(self, like: Tensor, factor: float, draws: Draws, *tag: object) -> Tensor:
        """Normal noise with standard deviation ``factor`` eps a pixel (eps / sqrt(CHW) in l_2)."""
        std = factor * self.radius
        if self.norm == "l2":
            std /= float(like[0].numel()) ** 0.5
        return draws.normal(like, std, *tag)

    def quantise(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """An 8-bit image inside the ball around the 8-bit image ``x``, close to ``x_adv``.

        Args:
            x_adv: (N, C, H, W) in [0, 1], inside the ball.
            x: the clean images, 8-bit values divided by 255.

        Returns:
            uint8 (N, C, H, W): the nearest one in l_inf. In l_2, where rounding would leave the
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


def norms(delta: Tensor, norm: str) -> Tensor:
    """Per-sample norm, shape (N, 1, 1, 1)."""
    flat = delta.flatten(1)
    value = flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)
    return value.view(-1, *([1] * (delta.dim() - 1)))
