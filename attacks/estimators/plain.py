"""The gradient itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from advens.attacks.interfaces import Context, Gradient
from advens.attacks.parts import part


@part("estimator", "plain")
class Plain:
    """The gradient at the point."""

    queries = 1

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        return gradient(x)
