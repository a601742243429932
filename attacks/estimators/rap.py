"""RAP: reverse adversarial perturbation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from advens.attacks.interfaces import Context, Gradient
from advens.attacks.parts import part
from advens.fields import Whole
from advens.threat import Threat


@part("estimator", "rap", paper="Qin et al., NeurIPS 2022 (RAP)", year=2022)
class RAP:
    """The gradient at ``x' + n``, where n is found by steps that lower the loss around x'.

    n starts uniform in the ball of ``radius`` eps, drawn for each sample and step, and takes ``inner`` steps
    of ``step`` eps against the gradient; it stays in that ball, and ``x' + n`` in [0, 1]. In an ensemble
    it lowers the fused loss.

    Args:
        radius: of the ball around x', relative to eps.
        step: length of an inner step, relative to eps (2/255 at 16/255).
        inner: inner steps.
        late: the first step that looks for n; earlier ones take the gradient at x' (100 of 400 in the paper).
    """

    radius: float = 1.0
    step: float = 1 / 8
    inner: Whole = 8
    late: Whole = 0

    @property
    def queries(self) -> int:
        return 1 + self.inner

    def queries_at(self, step: int) -> int:
        return 1 if step < self.late else 1 + self.inner

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        if context.draws.step < self.late:
            return gradient(x)
        around = Threat(context.threat.norm, self.radius * context.threat.radius)
        near = around.project(x + context.threat.noise(x, self.radius, context.draws, "rap"), x)
        for _ in range(self.inner):
            down = around.steepest(gradient(near))
            near = around.project(near - self.step * context.threat.radius * down, x)
        return gradient(near)
