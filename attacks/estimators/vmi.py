"""VMI: variance tuning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from advens.attacks.estimators.remembered import remembered
from advens.attacks.interfaces import Context, Gradient, gradients
from advens.attacks.parts import part


@part("estimator", "vmi", paper="Wang & He, CVPR 2021 (VMI-FGSM)", year=2021)
class VMI:
    """``g + v``, where v is the variance of the step before: mean neighbour gradient minus g.

    Args:
        copies: neighbours (N in the paper).
        beta: radius of the neighbourhood, relative to eps.
    """

    copies: int = 20
    beta: float = 1.5

    @property
    def queries(self) -> int:
        return self.copies + 1

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        before = remembered(memory, context).get("v")
        g = gradient(x)
        tuned = g if before is None else g + before
        mean = neighbourhood(gradient, x, self.copies, self.beta, context, "vmi")
        memory["v"] = mean - g
        return tuned


def neighbourhood(
    gradient: Gradient, x: Tensor, copies: int, radius: float, context: Context, tag: str
) -> Tensor:
    """Mean gradient over uniform neighbours of ``x`` in ``radius`` times the ball."""
    return mean(gradients(gradient, neighbours(x, copies, radius, context, tag)), copies)


def neighbours(x: Tensor, copies: int, radius: float, context: Context, tag: str) -> Iterator[Tensor]:
    """Uniform neighbours of ``x`` in ``radius`` times the ball."""
    return (x + context.threat.noise(x, radius, context.draws, tag, copy) for copy in range(copies))


def mean(each: Iterator[Tensor], count: int) -> Tensor:
    """The mean of so many gradients; the first is written to."""
    total = next(each)
    for g in each:
        total.add_(g)
    return total.div_(count)
