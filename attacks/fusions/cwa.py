"""CWA: common weakness, from flatness (SAM) and cosine similarity of gradients (CSE)."""

from __future__ import annotations

import math

from pydantic import ValidationInfo, field_validator
from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import Fusion, Oracle, Passes
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.updates import MI
from advens.threat import Threat, unit_l2

PAPER = "Chen et al., ICLR 2024 (CWA)"
PAPER_SIZE, PAPER_EPS = 3 * 224 * 224, 16 / 255
PUBLISHED_BETA = 250.0


@part("fusion", "sam", paper=PAPER, year=2024)
class SAM:
    """Sharpness: the fused gradient at ``x' - r steepest(g)``, a step of r against the gradient at x'.

    As in the published code the reverse step is half of alpha and is not projected. That code fuses the
    sum of the logits, not their mean, and targeted it skips the reverse step.

    Args:
        r: the reverse step, relative to alpha.
        accumulate: add the gradient at x' to the one at the reversed point, which is what the published
            code computes, since it does not clear the first before it takes the second.
        displacement: the paper's form: the direction is the reverse step and a step of alpha from there,
            both projected (the paper's r, eps/15, is a third of its alpha). Pixels at the edge of the
            ball lose their part in it, and r must be below 1: it would lead backwards.
    """

    r: float = 1 / 2
    accumulate: bool = False
    displacement: bool = False

    @field_validator("r")
    @classmethod
    def _reverse(cls, r: float) -> float:
        if r < 0:
            raise ValueError("at least 0, in steps against the gradient")
        return r

    @field_validator("displacement")
    @classmethod
    def _shorter(cls, displacement: bool, info: ValidationInfo) -> bool:
        if displacement and info.data.get("r", 0) >= 1:
            raise ValueError("r must be below 1: a longer reverse step leads backwards")
        if displacement and info.data.get("accumulate"):
            raise ValueError("gradients are added up only where the direction is a gradient")
        return displacement

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        alpha = oracle.context.step_size
        g = oracle.gradient(x)
        if self.displacement:
            back = oracle.context.step(x, -self.r * alpha, g)
            return oracle.context.step(back, alpha, oracle.gradient(back)) - x
        there = oracle.gradient(x - self.r * alpha * oracle.threat.steepest(g))
        return there + g if self.accumulate else there

    def passes(self, surrogates: int, gradients: int) -> Passes:
        return Passes(2 * surrogates * gradients, 2 * surrogates * gradients)


@part("fusion", "cse", paper=PAPER, year=2024)
class CSE:
    """Cosine similarity encourager: surrogates in order, each from where the one before arrived.

    Args:
        beta: inner step on a unit gradient at the paper's size and eps; see `rescaled`.
        mu: decay of the inner momentum, which is kept from step to step.
        published: beta is 250 and unscaled, as in the published code of CWA (in that of CSE it is 50).
    """

    beta: float = 50.0
    mu: float = 1.0
    published: bool = False

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        return self.walk(oracle, x) - x

    def walk(self, oracle: Oracle, start: Tensor) -> Tensor:
        """Where K inner steps from ``start`` arrive."""
        state, at = oracle.state("cse"), start
        beta = PUBLISHED_BETA if self.published else rescaled(self.beta, start, oracle.threat)
        for k in range(oracle.k):
            unit = unit_l2(oracle.gradient(at, [k]))
            n = unit.add_(state["n"], alpha=self.mu) if "n" in state else unit
            state["n"] = n
            at = oracle.context.move(at, beta, n)
        return at

    def passes(self, surrogates: int, gradients: int) -> Passes:
        return Passes(surrogates * gradients, surrogates * gradients)


@part("fusion", "cwa", paper=PAPER, year=2024, couples="option")
class CWA:
    """The reverse step of SAM, then the walk of CSE; the displacement is the direction.

    Published code projects the reverse step, as here, and fuses the sum of the logits, not their mean; its
    momentum divides by the l_1 norm of the whole batch (``batch-mi``), and its lengths are those of eps
    16/255 at every eps.

    Args:
        r: the reverse step, relative to eps.
        beta, mu, published: of the walk, see `CSE`.
    """

    r: float = 1 / 15
    beta: float = 50.0
    mu: float = 1.0
    published: bool = False

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        walk = CSE(beta=self.beta, mu=self.mu, published=self.published).walk
        back = oracle.context.step(x, -self.r * oracle.threat.radius, oracle.gradient(x))
        return walk(oracle, back) - x

    def passes(self, surrogates: int, gradients: int) -> Passes:
        return Passes(2 * surrogates * gradients, 2 * surrogates * gradients)


def rescaled(beta: float, x: Tensor, threat: Threat) -> float:
    """beta for this image size and budget, meaning what it means at 3x224x224 and 16/255.

    A unit gradient there has a root mean square of 1/388 a pixel: beta is a step of so many eps a
    pixel (in l_2: of so many eps in length).
    """
    in_eps = beta / math.sqrt(PAPER_SIZE) / PAPER_EPS
    pixels = math.sqrt(x[0].numel()) if threat.norm == "linf" else 1.0
    return in_eps * threat.radius * pixels


def _common(fusion: Fusion) -> ComposedAttack:
    return ComposedAttack(
        threat=Threat("linf", "16/255"), step_size=StepSize("2eps/T"), update=MI(), fusion=fusion
    )


@recipe("cwa", symbol="CWA", family="fusion", paper=PAPER, year=2024, couples="option")
def CWAAttack() -> ComposedAttack:
    """Common weakness with outer momentum; eps 16/255, steps of 2 eps/T."""
    return _common(CWA())


@recipe("mi-cwa", family="fusion", paper=PAPER, year=2024, couples="option")
def MICWA() -> ComposedAttack:
    """CWA by its full name."""
    return _common(CWA())


@recipe("sam", symbol="SAM", family="fusion", paper=PAPER, year=2024)
def MISAM() -> ComposedAttack:
    """CWA's flatness half alone."""
    return _common(SAM())


@recipe("cse", symbol="CSE", family="fusion", paper=PAPER, year=2024)
def MICSE() -> ComposedAttack:
    """CWA's cosine half alone."""
    return _common(CSE())
