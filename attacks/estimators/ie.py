"""IE: the improved Euler method."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from advens.attacks.interfaces import Context, Gradient
from advens.attacks.parts import part


@part("estimator", "ie", paper="Peng et al., ICASSP 2023 (IE-FGSM)", year=2023)
class IE:
    """``(a + b) / 2``: a is the unit gradient at x', b the one at ``x' + alpha a``.

    The second point is reached along the gradient, not along its sign. Units are ``g / mean|g|``, in l_2
    ``g / ||g||_2``. The published momentum adds the estimate as it is (update ``sum``). Nothing is drawn.
    """

    queries = 2

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        a = context.unit(gradient(x))
        b = context.unit(gradient(x + context.step_size * a))
        return (a + b) / 2
