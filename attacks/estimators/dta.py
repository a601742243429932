"""DTA: direction tuning."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from advens.attacks.estimators.remembered import remembered
from advens.attacks.interfaces import Context, Gradient
from advens.attacks.parts import part
from advens.fields import within


@part("estimator", "dta", paper="Yang et al., 2023 (DTA), arXiv 2303.15109", year=2023)
class DTA:
    """Mean momentum of K short steps from x': ``m_{k+1} = mu2 m_k + g_k``, starting at the outer momentum.

    ``g_k`` is the gradient at ``x_k + alpha mu1 m_k`` over its mean|g| (in l_2 over its length, and the
    look-ahead is along ``m_k / ||m_k||_2``), and ``x_{k+1}`` is a projected step of alpha/K along
    ``m_{k+1}``. The outer momentum ``m <- mu1 m + estimate`` is that of the update ``sum`` with the same
    mu, which the recipe has. mu2 is 0 without Nesterov's look-ahead in the paper. Nothing is drawn.

    Args:
        inner: K.
        mu1: decay of the outer momentum; 0 looks nowhere ahead.
        mu2: decay of the inner momentum.
    """

    inner: Annotated[int, within("at least 2; a single step is the update 'ni'", lambda n: n >= 2)] = 10
    mu1: float = 1.0
    mu2: float = 0.8

    @property
    def queries(self) -> int:
        return self.inner

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        threat, alpha = context.threat, context.step_size
        outer: Tensor = remembered(memory, context).get("m", x.new_zeros(x.shape))
        at, m, mean = x, outer, x.new_zeros(())
        for _ in range(self.inner):
            ahead = m if threat.norm == "linf" else threat.steepest(m)
            m = self.mu2 * m + context.unit(gradient(at + alpha * self.mu1 * ahead))
            at = context.step(at, alpha / self.inner, m)
            mean = mean + m / self.inner
        memory["m"] = self.mu1 * outer + mean
        return mean
