"""White-box descents of the field, as settings of one loop.

``pgd-ce``, ``cw``, ``pgd-dlr`` and ``pma-simple`` differ in the loss alone: 100 steps of eps/4 from a
uniform point. ``md`` and ``pma`` take their loss apart: each restart is two runs of 100 steps.
"""

from __future__ import annotations

from advens.attacks.losses import DLR, CrossEntropy, Margin
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.whitebox.descent import Descent, Halves
from advens.attacks.whitebox.margins import ProbabilityMargin


@recipe("pgd-ce", family="white-box", paper="Madry et al., ICLR 2018", year=2018)
def PGDCE() -> Descent:
    """White-box PGD on cross-entropy."""
    return Descent(loss=CrossEntropy(), step_size=StepSize("eps/4"))


@recipe("cw", family="white-box", paper="Carlini & Wagner, S&P 2017", year=2017)
def CW() -> Descent:
    """White-box PGD on the logit margin of Carlini and Wagner."""
    return Descent(loss=Margin(), step_size=StepSize("eps/4"))


@recipe("pgd-dlr", family="white-box", paper="Croce & Hein, ICML 2020", year=2020)
def PGDDLR() -> Descent:
    """White-box PGD on the difference of logits ratio."""
    return Descent(loss=DLR(), step_size=StepSize("eps/4"))


@recipe("pma-simple", family="white-box", paper="Xie et al., CVPR 2025", year=2025)
def PMASimple() -> Descent:
    """White-box PGD on the probability margin."""
    return Descent(loss=ProbabilityMargin(), step_size=StepSize("eps/4"))


@recipe("md", family="white-box", paper="Ma et al., Machine Learning 2023", year=2023)
def MD() -> Descent:
    """Margin decomposition: half a run on one logit, half on the logit margin."""
    return Descent(loss=Margin(), step_size=Halves(), decomposed=True)


@recipe("pma", family="white-box", paper="Xie et al., CVPR 2025", year=2025)
def PMA() -> Descent:
    """Probability margin attack: half a run on one probability, half on their margin."""
    return Descent(
        loss=ProbabilityMargin(), step_size=Halves(), decomposed=True, first_on_label=True
    )
